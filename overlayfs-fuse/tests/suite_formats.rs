//! Layers of other programs: the kernel's overlayfs, with either namespace of attributes, and
//! fuse-overlayfs. Also upper layers that this overlay and the kernel's write in turn.
//!
//! Needs root, /dev/fuse and Debian's package fuse-overlayfs; fails without them.

#[path = "suite/changes.rs"]
mod changes;
#[path = "suite/fixture.rs"]
mod fixture;
#[path = "suite/mount.rs"]
mod mount;
#[path = "suite/run.rs"]
mod run;
#[path = "suite/unprivileged.rs"]
mod unprivileged;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use changes::{AGAIN, CHANGES, make_lower, mount_fuse_overlayfs, mount_kernel, shell, umount};
use fixture::Fixture;
use mount::Mount;
use overlayfs::layer_tools::options::Command;
use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use test_common::{Detail, LowerGuard, Setup, Snapshot, mode, names};

/// Makes two layers over a lower one with another overlay. Compares the tree that it shows of the
/// three with the tree of this overlay.
fn compare(start: impl Fn(&str, &Path)) {
    let setup = Setup::new();
    mode(setup.root(), 0o755);
    let [lower, first, second, point] = ["lower", "first", "second", "mount"].map(|name| setup.dir(name));
    make_lower(&lower);
    let mut below = lower.display().to_string();
    for (upper, script) in [(&first, CHANGES), (&second, AGAIN)] {
        let work = setup.dir(&format!("work-{}", upper.file_name().unwrap().to_str().unwrap()));
        start(&format!("lowerdir={below},upperdir={},workdir={}", upper.display(), work.display()), &point);
        shell(&point, script);
        umount(&point);
        below = format!("{}:{below}", upper.display());
    }
    start(&format!("lowerdir={below}"), &point);
    let expected = Snapshot::take(&point, Detail::Times);
    umount(&point);

    // From here on only the mount reads the layers: other readers would change times of access.
    let guard = LowerGuard::new([&lower, &first, &second]);
    let mount = Mount::new(&point, &format!("lowerdir={below}"));
    expected.assert_same(&Snapshot::take(&point, Detail::Times), "the tree of this overlay");
    mount.unmount();
    let upper = setup.dir("upper");
    let mount = Mount::new(&point, &format!("lowerdir={below},upperdir={}", upper.display()));
    shell(
        &point,
        "rm -r a b/renamed; mv d/again d/third; echo z >> d/third/two; mkdir a; test -z \"$(ls a)\"; test ! -e d/third/one",
    );
    mount.unmount();
    guard.check();
}

fn kernel(options: &str, point: &Path) {
    mount_kernel(&format!("{options},redirect_dir=on,metacopy=off,index=off"), point);
}

fn kernel_of_a_user(options: &str, point: &Path) {
    mount_kernel(&format!("{options},userxattr,metacopy=off,index=off"), point);
}

fn kernel_with_metacopy(options: &str, point: &Path) {
    mount_kernel(&format!("{options},redirect_dir=on,metacopy=on,index=off"), point);
}

#[test]
fn layers_of_the_kernels_overlayfs() {
    compare(kernel);
}

/// The mounts of a user without the right to `trusted` attributes, in which lower directories
/// cannot be renamed.
#[test]
fn layers_with_the_attributes_of_a_user() {
    compare(kernel_of_a_user);
}

#[test]
fn layers_of_fuse_overlayfs() {
    compare(mount_fuse_overlayfs);
}

/// Metacopies, renamed and in renamed directories, in two lower layers, and changes of them.
#[test]
fn layers_with_metacopies() {
    let setup = Setup::new();
    mode(setup.root(), 0o755);
    let [lower, first, second, point] = ["lower", "first", "second", "mount"].map(|name| setup.dir(name));
    make_lower(&lower);
    let mut below = lower.display().to_string();
    let scripts = [
        "chmod 600 a/file f; chown 1:1 b/file; mv b/file moved; mv a/gone b/gone; touch -d @1 c/dir/one; mv c/dir d/dir; chmod 4711 d/dir/two",
        "chmod 640 a/file; mv a/file b/file; mv moved d/dir/moved; mv d/dir e/dir; chmod 700 b/gone e/dir/one; rm f",
    ];
    for (upper, script) in [&first, &second].into_iter().zip(scripts) {
        let work = setup.dir(&format!("work-{}", upper.file_name().unwrap().to_str().unwrap()));
        kernel_with_metacopy(
            &format!("lowerdir={below},upperdir={},workdir={}", upper.display(), work.display()),
            &point,
        );
        shell(&point, script);
        umount(&point);
        below = format!("{}:{below}", upper.display());
    }
    let marked = run::finish(run::command("getfattr").args(["-Rhd", "-m", "metacopy"]).args([&first, &second]));
    assert!(String::from_utf8_lossy(&marked.stdout).matches("overlay.metacopy").count() >= 8, "{marked:?}");
    kernel_with_metacopy(&format!("lowerdir={below}"), &point);
    let expected = Snapshot::take(&point, Detail::Xattrs);
    umount(&point);

    let guard = LowerGuard::new([&lower, &first, &second]);
    let mount = Mount::new(&point, &format!("lowerdir={below}"));
    expected.assert_same(&Snapshot::take(&point, Detail::Xattrs), "the tree of this overlay");
    mount.unmount();
    let options =
        format!("lowerdir={below},upperdir={},workdir={}", setup.dir("upper").display(), setup.dir("work").display());
    let mount = Mount::new(&point, &options);
    shell(
        &point,
        "echo more >> b/file; test \"$(cat b/file)\" = a/filemore; chmod 777 e/dir/moved; test \"$(cat e/dir/moved)\" = b/file
        exec 3< e/dir/one; rm e/dir/one; test \"$(cat <&3)\" = c/dir/one",
    );
    mount.unmount();
    guard.check();
}

/// This overlay goes on with an upper layer in which the kernel left metacopies, and then the
/// kernel goes on with it again.
#[test]
fn an_upper_layer_with_metacopies() {
    let fixture = Fixture::with_work();
    let (lower, point, options) = (fixture.path("lower"), fixture.point(), fixture.options(""));
    make_lower(&lower);
    fs::write(lower.join("large"), vec![b'x'; 3 << 20]).unwrap();
    let guard = fixture.guard();
    kernel_with_metacopy(&options, &point);
    shell(
        &point,
        "chmod 600 a/file b/file c/dir/one d/other e/file large; ln large link; mv b/dir moved; chmod 700 moved/one",
    );
    let expected = Snapshot::take(&point, Detail::Xattrs);
    umount(&point);
    let mount = Mount::new(&point, &options);
    expected.assert_same(&Snapshot::take(&point, Detail::Xattrs), "the tree of this overlay");
    shell(
        &point,
        "echo more >> a/file; mv b/file b/new; : > d/other; truncate -s 2 e/file; echo y | dd of=link conv=notrunc bs=1 seek=1000000
        exec 3< c/dir/one; rm c/dir/one; test \"$(cat <&3)\" = c/dir/one; exec 3<&-; mv moved again",
    );
    let large = fs::read(point.join("large")).unwrap();
    assert!(large.len() == 3 << 20 && large[999_999..1_000_003] == *b"xy\nx");
    let expected = Snapshot::take(&point, Detail::Xattrs);
    mount.unmount();
    kernel_with_metacopy(&options, &point);
    expected.assert_same(&Snapshot::take(&point, Detail::Xattrs), "the tree of the kernel's overlayfs");
    umount(&point);
    guard.check();
}

/// A generator (xorshift) of numbers that look random, and are the same in every run.
struct Random {
    state: u64,
    names: &'static [&'static str],
}

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) as usize % limit
    }

    fn path(&mut self, root: &Path) -> PathBuf {
        (0..=self.below(3)).fold(root.to_owned(), |path, _| path.join(self.names[self.below(self.names.len())]))
    }
}

/// Makes a change in the tree below `root`: a creation, removal, rename, or a change of content or
/// attributes. Most changes succeed.
fn change(root: &Path, random: &mut Random) -> io::Result<()> {
    let (path, other) = (random.path(root), random.path(root));
    let number = random.below(1 << 20);
    // An open of a FIFO without a reader must not wait.
    let mut open = fs::OpenOptions::new();
    open.custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW);
    match random.below(16) {
        0 | 1 => {
            let mut file = open.write(true).create(true).truncate(true).open(path)?;
            file.write_all(&vec![number as u8; number % 9000])
        }
        2 | 3 => fs::create_dir(path),
        4 => fs::remove_file(path),
        5 => fs::remove_dir(path),
        6 => fs::remove_dir_all(path),
        7..=9 => fs::rename(path, other),
        10 => open.append(true).open(path)?.write_all(b"more"),
        11 => fs::set_permissions(path, fs::Permissions::from_mode(number as u32 & 0o7777 | 0o700)),
        12 => match number % 4 {
            0 => symlink(format!("to {number}"), path),
            1 => Ok(rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o640), 0)?),
            2 => Ok(rustix::fs::renameat_with(CWD, path, CWD, other, rustix::fs::RenameFlags::EXCHANGE)?),
            _ => fs::hard_link(path, other),
        },
        13 => chown(path, Some(number as u32 % 3), Some(number as u32 % 5)),
        14 => Ok(rustix::fs::setxattr(path, format!("user.x{}", number % 3), &[number as u8], XattrFlags::empty())?),
        _ => {
            let time = SystemTime::UNIX_EPOCH + Duration::new(number as u64 * 1000, number as u32);
            let file = open.read(true).open(path)?;
            file.set_times(fs::FileTimes::new().set_accessed(time).set_modified(time))
        }
    }
}

/// The names of the changes, the detail of the comparison, and the number of runs.
struct How {
    names: &'static [&'static str],
    detail: Detail,
    seeds: u64,
}

const WITH_THE_KERNEL: How = How { names: &["a", "b", "c", "d", ".wh.e"], detail: Detail::Xattrs, seeds: 12 };
/// fuse-overlayfs makes directories with names that begin with `.wh.`, and does not show them. It
/// also changes times of directories.
const WITH_FUSE_OVERLAYFS: How = How { names: &["a", "b", "c", "d"], detail: Detail::Contents, seeds: 5 };

/// Makes two lower layers with random objects, and returns the numbers behind them.
fn random_layers(seed: u64, names: &'static [&'static str]) -> (Setup, Random) {
    let setup = Setup::new();
    mode(setup.root(), 0o755);
    let mut random = Random { state: 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed), names };
    for layer in ["lower", "bottom"].map(|name| setup.dir(name)) {
        for _ in 0..30 {
            let path = random.path(&layer);
            if !path.as_os_str().to_str().unwrap().contains(".wh.") {
                let _ = fs::create_dir_all(path.parent().unwrap());
                let _ =
                    if random.below(3) == 0 { fs::create_dir_all(path) } else { fs::write(path, [seed as u8; 5000]) };
            }
        }
    }
    (setup, random)
}

/// Returns the mount options for these layers.
fn layers_of(setup: &Setup) -> String {
    let [lower, bottom, upper, work] =
        ["lower", "bottom", "upper", "work"].map(|name| setup.dir(name).display().to_string());
    format!("lowerdir={lower}:{bottom},upperdir={upper},workdir={work}")
}

/// This overlay and another one mount the same layers in turn. Each changes them, and each must
/// show the tree that the other left. The first mount of this overlay has the options `more`, and
/// each one has `always`.
fn in_turn(other: impl Fn(&str, &Path), (more, always): (&str, &str), other_first: bool, how: How) {
    let How { names, detail, seeds } = how;
    let mut done = 0;
    for seed in 1..=seeds {
        let (setup, mut random) = random_layers(seed, names);
        let [lower, bottom, point] = ["lower", "bottom", "mount"].map(|name| setup.dir(name));
        // fuse-overlayfs changes times of access.
        let lowers = [&lower, &bottom].map(|lower| Snapshot::take(lower, Detail::Xattrs));
        let options = layers_of(&setup);
        let mut expected: Option<Snapshot> = None;
        for turn in usize::from(!other_first)..6 {
            let ours = turn % 2 == 1;
            let mount = match ours {
                // The first mount of this overlay sets the format of the layer.
                true if expected.is_none() => Some(Mount::new(&point, &format!("{options}{more}{always}"))),
                true => Some(Mount::new(&point, &format!("{options}{always}"))),
                false => None,
            };
            if !ours {
                other(&options, &point);
            }
            if let Some(expected) = &expected {
                let who = if ours { "this overlay" } else { "the other" };
                expected.assert_same(
                    &Snapshot::take(&point, detail),
                    &format!("seed {seed}, turn {turn}: the tree of {who}"),
                );
            }
            done += (0..60).filter(|_| change(&point, &mut random).is_ok()).count();
            if !ours {
                // In a mount of a user, the kernel may show two names of a copied file as two
                // files, until the next mount.
                umount(&point);
                other(&options, &point);
            }
            expected = Some(Snapshot::take(&point, detail));
            match mount {
                Some(mount) => mount.unmount(),
                None => umount(&point),
            }
        }
        for (before, layer) in lowers.iter().zip([&lower, &bottom]) {
            before.assert_same(&Snapshot::take(layer, Detail::Xattrs), "a lower layer");
        }
    }
    assert!(done as u64 > seeds * 5 * 8, "only {done} changes could be made");
}

#[test]
fn upper_layers_that_the_kernel_reads_and_writes() {
    in_turn(kernel, (",format=kernel", ""), false, WITH_THE_KERNEL);
}

#[test]
fn upper_layers_started_by_the_kernel() {
    in_turn(kernel, ("", ""), true, WITH_THE_KERNEL);
}

/// With the attributes of a user, which a mount of root uses where it finds them.
#[test]
fn upper_layers_of_a_user() {
    let is_user = std::env::var_os(unprivileged::VARIABLE).is_some();
    in_turn(kernel_of_a_user, (",format=kernel", ""), !is_user, WITH_THE_KERNEL);
}

#[test]
fn upper_layers_as_an_unprivileged_user() {
    unprivileged::again(&["upper_layers_of_a_user"], &[], &[]);
}

/// The OCI format, with the devices that fuse-overlayfs makes as whiteouts.
#[test]
fn upper_layers_started_by_fuse_overlayfs() {
    in_turn(mount_fuse_overlayfs, ("", ",redirect_dir=off"), true, WITH_FUSE_OVERLAYFS);
}

#[test]
fn upper_layers_continued_by_fuse_overlayfs() {
    in_turn(mount_fuse_overlayfs, ("", ",redirect_dir=off"), false, WITH_FUSE_OVERLAYFS);
}

/// Runs `overlayfs-layer convert` with these options.
fn convert(layers: &str, more: &[&str]) {
    let words = ["convert", "-o", layers].into_iter().chain(more.iter().copied()).map(OsString::from);
    let Ok(Command::Run { tool, .. }) = Command::parse(words) else { panic!("{more:?} is no command line") };
    tool.run(&mut io::sink(), &()).unwrap_or_else(|error| panic!("{more:?}: {error}"));
}

/// The other programs show a converted layer as this overlay showed it before, and the way back
/// keeps what they changed.
#[test]
fn converted_layers_of_random_work() {
    for seed in 1..=6 {
        let (setup, mut random) = random_layers(seed, WITH_FUSE_OVERLAYFS.names);
        let guards = ["lower", "bottom"].map(|name| Snapshot::take(&setup.path(name), Detail::Xattrs));
        let (point, options) = (setup.dir("mount"), layers_of(&setup));
        let mut work = |expected: Option<&Snapshot>, what: &str| {
            let shown = Snapshot::take(&point, Detail::Xattrs);
            if let Some(expected) = expected {
                expected.assert_same(&shown, &format!("seed {seed}: {what}"));
            }
            (0..60).for_each(|_| drop(change(&point, &mut random)));
        };
        let show = |detail| Snapshot::take(&point, detail);

        let mount = Mount::new(&point, &options);
        work(None, "");
        let expected = show(Detail::Xattrs);
        mount.unmount();
        convert(&options, &["--to", "kernel"]);
        kernel(&options, &point);
        work(Some(&expected), "the kernel's overlayfs");
        umount(&point);
        // The kernel shows some links only in the next mount.
        kernel(&options, &point);
        let expected = show(Detail::Xattrs);
        umount(&point);
        convert(&options, &["--to", "oci"]);
        let mount = Mount::new(&point, &options);
        work(Some(&expected), "this overlay");
        let expected = show(Detail::Contents);
        mount.unmount();
        convert(&options, &["--deref"]);
        mount_fuse_overlayfs(&options, &point);
        expected.assert_same(&show(Detail::Contents), &format!("seed {seed}: fuse-overlayfs"));
        umount(&point);
        for (before, name) in guards.iter().zip(["lower", "bottom"]) {
            before.assert_same(&Snapshot::take(&setup.path(name), Detail::Xattrs), "a lower layer");
        }
    }
}

/// Deletions, opaque directories and their replacements, by both programs in turn.
#[test]
fn a_layer_of_fuse_overlayfs_is_continued() {
    let fixture = Fixture::with_work();
    let (point, options) = (fixture.point(), fixture.options(""));
    make_lower(&fixture.path("lower"));
    mount_fuse_overlayfs(&options, &point);
    shell(&point, "rm a/gone f b/file; rm -r a/tree b/dir; mkdir a/tree; echo new > a/tree/new; mv d/other d/moved");
    umount(&point);
    shell(&fixture.path("upper"), "test -c a/gone; test -c f; test -c b/dir; test -c d/other");

    let mount = Mount::new(&point, &options);
    shell(
        &point,
        "test ! -e a/gone; test ! -e f; test -z \"$(ls -A b)\"; test \"$(ls a/tree)\" = new; test \"$(ls d)\" = moved
        echo again > a/gone; mkdir f b/dir; mv d/moved b/file; ln b/file d/other; rm -r a/tree; rm c/dir/one",
    );
    let expected = Snapshot::take(&point, Detail::Contents);
    mount.unmount();
    mount_fuse_overlayfs(&options, &point);
    expected.assert_same(&Snapshot::take(&point, Detail::Contents), "what fuse-overlayfs shows");
    shell(&point, "rm a/gone c/dir/two; rmdir b/dir; mkdir a/tree");
    umount(&point);
    for more in [",ro", ""] {
        let mount = fixture.mount(more);
        shell(&point, "test ! -e a/gone; test \"$(ls b)\" = file; test -z \"$(find c/dir a/tree f -type f)\"");
        mount.unmount();
    }
}

#[test]
fn a_layer_of_fuse_overlayfs_as_an_unprivileged_user() {
    unprivileged::again(&["a_layer_of_fuse_overlayfs_is_continued"], &[], &[]);
}

/// Without redirects this overlay refuses a rename of a lower directory as the kernel does.
#[test]
fn a_user_cannot_rename_lower_directories_in_the_kernels_format() {
    let fixture = Fixture::with_work();
    let point = fixture.point();
    make_lower(&fixture.path("lower"));
    kernel_of_a_user(&fixture.options(""), &point);
    umount(&point);
    let mount = fixture.mount("");
    let refused = fs::rename(point.join("c/dir"), point.join("new")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EXDEV));
    assert_eq!(names(&fixture.path("upper")), [""; 0], "nothing was copied up for it");
    shell(&point, "mv c/dir new; mkdir own; mv own other; test \"$(cat new/one)\" = c/dir/one; test ! -e c/dir");
    mount.unmount();
}

/// With redirect_dir=off other programs understand everything in the layer.
#[test]
fn without_redirects_other_readers_see_renamed_directories_whole() {
    for format in ["oci", "kernel"] {
        let fixture = Fixture::with_work();
        let point = fixture.point();
        make_lower(&fixture.path("lower"));
        let mount = fixture.mount(&format!(",format={format}"));
        shell(&point, "mv b/dir b/earlier");
        mount.unmount();
        let mount = fixture.mount(&format!(",format={format},redirect_dir=off"));
        let refused = fs::rename(point.join("c/dir"), point.join("new")).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EXDEV), "{format}");
        shell(&point, "mv c/dir new; mkdir own; mv own other; test \"$(cat new/one)\" = c/dir/one; test ! -e c/dir");
        shell(&fixture.path("upper"), "test \"$(cat new/one)\" = c/dir/one");
        shell(&point, "test \"$(cat b/earlier/one)\" = b/dir/one; mv b/earlier b/later; cat b/later/sub/two");
        mount.unmount();
    }
}
