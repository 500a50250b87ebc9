//! Parses, starts, and maps an error to an exit code.

fn main() {}
