//! Tests of the region on real memory.
