//! Files larger than any disk and memory, which are mostly holes: so only where the layers know holes.

use syscall::flag::{MapFlags, MunmapFlags, O_RDWR};

use crate::support::{Stage, ann};

fn stage() -> Stage {
    Stage::new(|lower| {
        lower.dir("d", 0o777);
        lower.file("d/f", 0o666);
    })
}

#[test]
fn sizes_whose_lower_half_is_the_smallest_number() {
    let stage = stage();
    let file = stage.open(&ann(), "d/f", O_RDWR).unwrap();
    for size in [1 << 31, (1 << 31) | 1 << 40] {
        file.ftruncate(size).unwrap();
        assert_eq!((file.fsize(), file.fstat().map(|stat| stat.st_size)), (Ok(size), Ok(size)));
    }
    assert!(stage.is_alive());
}

#[test]
fn a_mapped_hole_takes_no_memory() {
    let stage = stage();
    let file = stage.open(&ann(), "d/f", O_RDWR).unwrap();
    let (middle, size) = (1 << 35, 1 << 36);
    file.ftruncate(1 << 40).unwrap();
    file.write_at(b"x", middle).unwrap();
    let before = memory();
    let address = file.mmap(0, size, MapFlags::PROT_READ | MapFlags::MAP_PRIVATE).unwrap();
    // SAFETY: the daemon has it mapped until it is told of the end.
    let byte = unsafe { (address as *const u8).add(middle as usize).read() };
    assert_eq!(byte, b'x');
    // Other tests take some at the same time.
    assert!(memory() < before + (1 << 30), "{} of {before} bytes", memory());
    file.munmap(0, size, MunmapFlags::empty()).unwrap();
    assert!(stage.is_alive());
}

/// How many bytes of memory this process has.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}
