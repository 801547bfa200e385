//! Tests that run once through each front end: through `overlayfs-fuse`, and through the program of
//! the Redox simulator, which serves requests with the scheme.

/// Makes two tests of each of these functions: one in a module `engine`, one in `scheme`. A
/// function gets the name of the front end. As the value of the mount option `door` this name
/// selects the program (see `program.rs`).
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
