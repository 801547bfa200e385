//! Tests that run once through each front end: by `overlayfs-fuse`, and by the delegate's program
//! whose requests go through the scheme.

/// Makes two tests of each of these functions, which take the name of a front end: one in a module
/// `engine`, one in `scheme`. As the mount option `front_end` that name says which program is meant
/// (see `program.rs`).
macro_rules! through_both_front_ends {
    ($($name:ident),* $(,)?) => {
        mod engine {
            $(#[test] fn $name() { super::$name("engine"); })*
        }
        mod scheme {
            $(#[test] fn $name() { super::$name("scheme"); })*
        }
    };
}
