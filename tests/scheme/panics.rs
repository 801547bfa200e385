//! A panic of the daemon fails one request, and the daemon goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use overlayfs::layer::counted::Method;
use syscall::error::EIO;
use syscall::flag::{O_RDONLY, O_STAT};

use crate::layers::Layers;
use crate::support::{Setup, refused, root};

#[test]
fn a_panic_costs_one_request() {
    let layers = Layers::new(|lower| {
        lower.file("mine", 0o644);
        lower.file("field", 0o644);
    });
    let (overlay, counts) = layers.counted();
    let stepped_on = Arc::new(AtomicBool::new(false));
    let is_mined = stepped_on.clone();
    counts.interpose(move |method| {
        assert!(method != Method::OpenFile || !is_mined.load(Ordering::Relaxed), "stepped on it");
        Ok(())
    });
    let setup = Setup::serve(overlay, layers);

    let mine = setup.open(&root(), "mine", O_RDONLY).unwrap();
    for _ in 0..3 {
        stepped_on.store(true, Ordering::Relaxed);
        assert_eq!(mine.read(&mut [0; 8]), refused(EIO));
        stepped_on.store(false, Ordering::Relaxed);
        assert_eq!(mine.fstat().unwrap().st_size, 4);
        assert_eq!(setup.content("field"), "field");
    }
    drop(mine);
    setup.open(&root(), "mine", O_STAT).unwrap();
    root().write_file(setup.path("field"), "still fine").unwrap();
    assert_eq!(setup.content("field"), "still fine");
}
