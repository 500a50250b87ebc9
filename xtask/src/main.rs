//! Development commands, one verb per file.

fn main() {}
