//! What is sealed comes back, from any k shards.
