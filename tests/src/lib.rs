//! Real guests, harness and integration tests.
