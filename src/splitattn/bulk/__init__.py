"""Labels any number of images, on this machine or on a Ray cluster.

`listing` lists the images into a manifest of shards, `shards` labels one of them and writes one
part, and `clusters` decides where that is done. A part that exists is done.
"""
