//! Files larger than disk and memory. They are mostly holes, so these tests need layers that store
//! holes.

use linux_delegate::Fd;
use syscall::error::{ENOMEM, Error, Result};
use syscall::flag::{MapFlags, MunmapFlags, O_CREAT, O_RDWR};

use crate::support::{Setup, ann, bob, refused};

fn setup() -> Setup {
    Setup::new(|lower| {
        lower.dir("d", 0o777);
        lower.file("d/f", 0o666);
    })
}

#[test]
fn sizes_whose_lower_half_is_the_smallest_number() {
    let setup = setup();
    let file = setup.open(&ann(), "d/f", O_RDWR).unwrap();
    for size in [1 << 31, (1 << 31) | 1 << 40] {
        file.ftruncate(size).unwrap();
        assert_eq!((file.fsize(), file.fstat().map(|stat| stat.st_size)), (Ok(size), Ok(size)));
    }
    assert!(setup.is_alive());
}

#[test]
fn a_mapped_hole_takes_no_memory() {
    let setup = setup();
    let file = setup.open(&ann(), "d/f", O_RDWR).unwrap();
    let (middle, size) = (1 << 30, 1 << 31);
    file.ftruncate(1 << 40).unwrap();
    file.write_at(b"x", middle).unwrap();
    let before = memory();
    let address = file.mmap(0, size, MapFlags::PROT_READ | MapFlags::MAP_PRIVATE).unwrap();
    // SAFETY: the daemon keeps the mapping until the client ends it.
    let byte = unsafe { (address as *const u8).add(middle as usize).read() };
    assert_eq!(byte, b'x');
    // Other tests use some memory at the same time.
    assert!(memory() < before + (1 << 29), "{} of {before} bytes", memory());
    file.munmap(0, size, MunmapFlags::empty()).unwrap();
    assert!(setup.is_alive());
}

#[test]
fn mapped_memory_has_a_limit() {
    const GIB: usize = 1 << 30;
    // SAFETY: this call only returns a number.
    let machine = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) } as usize * 4096;
    let setup = setup();
    let file = setup.open(&ann(), "d/f", O_RDWR).unwrap();
    file.ftruncate(1 << 40).unwrap();
    let again = setup.open(&ann(), "d/f", O_RDWR).unwrap();
    let map = |file: &Fd, gib: usize| {
        file.mmap((gib * GIB) as u64, GIB, MapFlags::PROT_READ | MapFlags::MAP_SHARED).map(drop)
    };
    let end = |file: &Fd, from: usize| {
        let refusal = (from..).find_map(|gib| map(file, gib).err().map(|error| (gib, error)));
        let (gib, error) = refusal.unwrap();
        assert_eq!(error, Error::new(ENOMEM));
        gib
    };
    assert_eq!(file.mmap(0, machine, MapFlags::PROT_READ | MapFlags::MAP_SHARED), refused(ENOMEM));
    let anns = end(&file, 0);
    assert!(anns >= 1 && anns * GIB <= machine / 2, "{anns} GiB of {machine} bytes");
    assert_eq!(map(&again, 0), Ok(()), "what the same user has mapped already");
    assert_eq!(map(&again, anns), refused(ENOMEM));

    let bobs = setup.open(&bob(), "d/f", O_RDWR).unwrap();
    let bobs_end = end(&bobs, anns);
    assert!(bobs_end > anns && bobs_end * GIB <= machine, "all together: {bobs_end} GiB");
    bobs.munmap((anns * GIB) as u64, (bobs_end - anns) * GIB, MunmapFlags::empty()).unwrap();
    file.munmap(0, GIB, MunmapFlags::empty()).unwrap();
    assert_eq!(map(&again, anns), refused(ENOMEM), "the first is mapped by the other handle still");
    again.munmap(0, GIB, MunmapFlags::empty()).unwrap();
    assert_eq!(map(&again, anns), Ok(()));
    assert_eq!(map(&again, 0), refused(ENOMEM));
    drop(file);
    assert_eq!(retry(|| map(&again, 0)), Ok(()), "a closed file has no mapping");
    assert!(setup.is_alive());
}

/// Retries: a close reaches the daemon after its client has gone on.
fn retry(mut request: impl FnMut() -> Result<()>) -> Result<()> {
    for _ in 0..1000 {
        match request() {
            Err(Error { errno: ENOMEM }) => std::thread::sleep(std::time::Duration::from_millis(1)),
            other => return other,
        }
    }
    request()
}

/// Mapped holes do not use up the address space of the daemon.
#[test]
fn mapped_holes_have_a_limit() {
    let setup = setup();
    let page = |name: &str| {
        let file = setup.open(&ann(), name, O_RDWR | O_CREAT | 0o600).unwrap();
        file.ftruncate(1 << 42).unwrap();
        file.mmap(0, 4096, MapFlags::PROT_READ | MapFlags::MAP_SHARED).map(|_| file)
    };
    let mut files = Vec::new();
    let refusal = loop {
        match page(&format!("d/{}", files.len())) {
            Ok(file) => files.push(file),
            Err(error) => break error,
        }
    };
    assert_eq!((refusal, files.len()), (Error::new(ENOMEM), 4), "32 TiB of address space");
    drop(files.pop());
    assert_eq!(retry(|| page("d/more").map(|file| files.push(file))), Ok(()));
}

/// Returns the number of bytes of memory that this process has.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}
