"""Run a partition, pass it on: what an edge box installs. Wire and codecs live here, once, for both ends."""
