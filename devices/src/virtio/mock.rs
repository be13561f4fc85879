//! A driver for tests: not written yet.
