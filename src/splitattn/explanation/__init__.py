"""Explains a label: a heat map over the image, and the share of each split in every block.

`explainer` opens the network and the image. `networks` chooses the method, of which `cam`,
`layercam` and `rise` are three. `explanation` is the answer, which draws itself.
"""
