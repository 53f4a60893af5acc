//! Content-based page sharing, sampling, compression and swap for memory that a VMM owns.
