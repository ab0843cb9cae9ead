"""An HTTP service and a web page around one network."""
