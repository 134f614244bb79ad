"""Audio for training: corpora on disk, tar shards, and mixtures made on the fly."""
