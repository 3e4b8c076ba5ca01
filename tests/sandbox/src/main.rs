//! Sandbox.

fn main() {}
