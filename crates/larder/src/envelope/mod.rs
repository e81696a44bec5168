//! The border between typed values and bytes.
