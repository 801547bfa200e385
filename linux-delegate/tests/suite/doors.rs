//! Tests that run once through each door of `overlayfs-fuse`.

/// Makes two tests of each of these functions, which take the name of a door: one in a module `engine`, one in `scheme`.
macro_rules! through_both_doors {
    ($($name:ident),* $(,)?) => {
        mod engine {
            $(#[test] fn $name() { super::$name("engine"); })*
        }
        mod scheme {
            $(#[test] fn $name() { super::$name("scheme"); })*
        }
    };
}
