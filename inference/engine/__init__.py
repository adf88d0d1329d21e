"""The torch half of the inference server: layers, key-value cache and the forward pass of one packed step."""
