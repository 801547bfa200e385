//! operations DIR: prints the answers of `std::fs` operations in a directory, for a comparison with
//! another filesystem.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, FileTimes, OpenOptions, Permissions};
use std::io::{Error, Read, Result, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::time::UNIX_EPOCH;

fn main() {
    let Some(dir) = std::env::args().nth(1) else {
        println!("Usage: operations DIR");
        return;
    };
    let path = |name: &str| format!("{dir}/{name}");
    println!("operations begin");

    show("create_dir", fs::create_dir(path("a")));
    show("create_dir 0700", DirBuilder::new().mode(0o700).create(path("a/b")));
    show("write", fs::write(path("a/f"), b"0123456789"));
    show("read_to_string", fs::read_to_string(path("a/f")));
    show("append", OpenOptions::new().append(true).open(path("a/f")).and_then(|mut file| file.write_all(b"XY")));
    show("seek, read, read_at", positions(&path("a/f")));
    show("set_len, sync_all", shorten(&path("a/f")));
    show("metadata", fs::metadata(path("a/f")).map(|meta| (meta.len(), meta.mode(), meta.nlink())));
    show("symlink_metadata", fs::symlink_metadata(path("a")).map(|meta| meta.is_dir()));
    show("exists", fs::exists(path("nope")));
    show("rename", fs::rename(path("a/f"), path("a/g")));
    show("rename of a directory", fs::rename(path("a/b"), path("c")));
    show("hard_link", fs::hard_link(path("a/g"), path("h")));
    show("symlink", symlink("a/g", path("s")));
    show("symlink to another scheme", symlink("/scheme/initfs/lib", path("x")));
    show("read_link", fs::read_link(path("s")));
    show("read through a symlink", fs::read_to_string(path("s")));
    show("metadata through a symlink", fs::metadata(path("s")).map(|meta| meta.is_file()));
    show("symlink_metadata of a symlink", fs::symlink_metadata(path("s")).map(|meta| meta.is_symlink()));
    show("read_dir through a symlink to another scheme", fs::read_dir(path("x")).map(Iterator::count));
    show("canonicalize", fs::canonicalize(path("s")).map(|found| found.strip_prefix(&dir).map(|rest| rest.to_owned())));
    show("set_permissions", fs::set_permissions(path("a/g"), Permissions::from_mode(0o600)));
    show("chown", chown(path("a/g"), Some(0), Some(0)));
    show("set_times", set_times(&path("a/g")));
    show("read_dir", list(&dir));
    show("copy", fs::copy(path("a/g"), path("k")));
    show("openat", open_at(&path("a")));
    show("private mapping", mapped(&path("a/g")));
    show("set_current_dir", relative(&path("a")));
    show("an unlinked file", unlinked(&path("tmp")));
    show("rename over a file", fs::rename(path("k"), path("h")));
    show("rename over a full directory", fs::rename(path("c"), path("a")));
    show("remove_dir of a full one", fs::remove_dir(path("a")));
    show("remove_file of a directory", fs::remove_file(path("c")));
    show("remove_dir of a file", fs::remove_dir(path("a/g")));
    show("remove_dir_all", fs::remove_dir_all(path("a")));
    for name in ["s", "x", "h"] {
        show("remove_file", fs::remove_file(path(name)));
    }
    show("remove_dir", fs::remove_dir(path("c")));
    show("read_dir of nothing", list(&dir));
    println!("operations end");
}

fn show<T: std::fmt::Debug>(what: &str, result: Result<T>) {
    match result {
        Ok(value) => println!("{what}: {value:?}"),
        Err(error) => println!("{what}: error {:?}, {error}", error.raw_os_error()),
    }
}

fn positions(path: &str) -> Result<([u8; 4], [u8; 3])> {
    let mut file = File::open(path)?;
    let (mut last, mut middle) = ([0; 4], [0; 3]);
    file.seek(SeekFrom::End(-4))?;
    file.read_exact(&mut last)?;
    file.read_exact_at(&mut middle, 2)?;
    Ok((last, middle))
}

fn shorten(path: &str) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(5)?;
    file.sync_all()
}

fn set_times(path: &str) -> Result<u64> {
    File::options().write(true).open(path)?.set_times(FileTimes::new().set_modified(UNIX_EPOCH))?;
    Ok(fs::metadata(path)?.mtime() as u64)
}

fn list(dir: &str) -> Result<Vec<(OsString, bool, bool)>> {
    let mut entries = fs::read_dir(dir)?
        .map(|entry| {
            let entry = entry?;
            let kind = entry.file_type()?;
            Ok((entry.file_name(), kind.is_dir(), kind.is_symlink()))
        })
        .collect::<Result<Vec<_>>>()?;
    entries.sort();
    Ok(entries)
}

fn open_at(dir: &str) -> Result<()> {
    let dir = File::open(dir)?;
    // SAFETY: a plain call with a descriptor that is open and a string that ends with a zero.
    let descriptor = unsafe { libc::openat(dir.as_raw_fd(), c"g".as_ptr(), libc::O_RDONLY) };
    if descriptor < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and no other code has it.
    unsafe { libc::close(descriptor) };
    Ok(())
}

fn mapped(path: &str) -> Result<u8> {
    let file = File::open(path)?;
    // SAFETY: a mapping at an address that the system chooses touches no memory of this program.
    let start =
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
    if start == libc::MAP_FAILED {
        return Err(Error::last_os_error());
    }
    // SAFETY: at least one byte is mapped for reading, until this program ends.
    Ok(unsafe { *start.cast() })
}

fn relative(dir: &str) -> Result<String> {
    std::env::set_current_dir(dir)?;
    let text = fs::read_to_string("g");
    std::env::set_current_dir("/scheme/initfs")?;
    text
}

fn unlinked(path: &str) -> Result<[u8; 3]> {
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    file.write_all(b"abc")?;
    fs::remove_file(path)?;
    let mut bytes = [0; 3];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
