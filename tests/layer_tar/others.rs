//! Archives between this program and others: GNU tar, Python, and images without tools for them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use overlayfs::layer::counted::{Counted, Counts};
use overlayfs::layer::{Kind, Layer, OsLayer, Owner};
use overlayfs::layer_tools::Views;
use overlayfs::layer_tools::export::{Holes, write_layer};
use overlayfs::layer_tools::import::{Wishes, import_layer};
use overlayfs::overlay::{Layers, Overlay};
use rustix::fs::FileType;
use test_common::{Detail, Random, Setup, Snapshot, mode, names, owner, put, times};

use crate::{below, done, import, layers, refused, run, shown, tool};

/// Makes a tree with everything that an archive can have.
fn tree(root: &Path) {
    put::file(root, "dir/file", "content");
    put::link(root, "dir/file", "dir/link");
    put::symlink(root, "symlink", "dir/file");
    put::node(root, "fifo", FileType::Fifo, 0o640, 0);
    put::node(root, "dir/null", FileType::CharacterDevice, 0o666, 0x103);
    let holes = put::file(root, "holes", "start");
    let file = File::options().write(true).open(&holes).unwrap();
    file.write_all_at(b"middle", 1_000_000).unwrap();
    file.set_len(3_000_000).unwrap();
    let long = put::file(root, &format!("{}/{}", "long".repeat(40), "name".repeat(60)), "long");
    put::symlink(root, "to-long", long.to_str().unwrap());
    owner(&root.join("dir/file"), 1000, 3_000_000);
    mode(&root.join("dir/file"), 0o4750);
    mode(&root.join("dir"), 0o1777);
    put::dir(root, "acls");
    run(Command::new("setfacl").args(["-m", "u:7:rx"]).arg(root.join("acls")));
    run(Command::new("setfacl").args(["-d", "-m", "g:8:rwx"]).arg(root.join("acls")));
    run(Command::new("setfattr").args(["-n", "user.two", "-v", "line\nbreak"]).arg(root.join("dir/file")));
    run(Command::new("setcap").arg("cap_net_raw+ep").arg(root.join("holes")));
    for (path, seconds) in [("dir/file", 1_000_000_000), ("symlink", 8_589_934_592), ("dir", 5), ("", 1_500_000_000)] {
        times(&root.join(path), (1, 0), (seconds, 123_456_789));
    }
}

/// Returns the space that a file takes, in KiB.
fn space(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() / 2
}

#[test]
fn other_programs_read_an_export() {
    let setup = Setup::new();
    let [lower, upper] = ["lower", "upper"].map(|name| setup.dir(name));
    tree(&upper);
    let archive = setup.path("x.tar");
    done(&[&"export", &"--lower", &lower, &"--upper", &upper, &archive]);
    let before = Snapshot::take(&upper, Detail::Xattrs);

    let unpacked = setup.dir("tar");
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--xattrs", "--xattrs-include=*", "--acls", "--same-owner", "--numeric-owner", "--file"]);
    run(tar.arg(&archive).arg("--directory").arg(&unpacked));
    before.assert_same(&Snapshot::take(&unpacked, Detail::Xattrs), "the tree of GNU tar");
    assert!(space(&unpacked.join("holes")) < 100, "tar made the holes zeros");

    let unpacked = setup.dir("python");
    let script = "import sys, tarfile\ntarfile.open(sys.argv[1]).extractall(sys.argv[2], numeric_owner=True)";
    run(Command::new("python3").args(["-c", script]).arg(&archive).arg(&unpacked));
    let before = Snapshot::take(&upper, Detail::Contents);
    before.assert_same(&Snapshot::take(&unpacked, Detail::Contents), "the tree of Python");
}

#[test]
fn archives_of_gnu_tar_in_each_of_its_formats_are_read() {
    let setup = Setup::new();
    let root = setup.dir("tree");
    tree(&root);
    // The old formats have neither long names nor these owners and times.
    let plain = setup.dir("plain");
    put::file(&plain, "dir/file", "content");
    put::link(&plain, "dir/file", "dir/link");
    put::symlink(&plain, "symlink", "dir/file");
    let all = Snapshot::take(&root, Detail::Xattrs);
    let packed = |from: &Path, name: &str, options: &[&str]| {
        let archive = setup.path(name);
        run(Command::new("tar").args(options).arg("--create").arg("--file").arg(&archive).arg("-C").arg(from).arg("."));
        import(&archive, &setup.path("into")).remove(0)
    };
    for version in ["0.0", "0.1", "1.0"] {
        let holes = format!("--sparse-version={version}");
        let options = ["--format=posix", "--sparse", &holes, "--acls", "--xattrs", "--xattrs-include=*"];
        let layer = packed(&root, &format!("posix-{version}.tar"), &options);
        all.assert_same(&Snapshot::take(&layer, Detail::Xattrs), &format!("the layer with holes {version}"));
        assert!(space(&layer.join("holes")) < 100, "{version}: the holes are zeros");
    }
    let contents = Snapshot::take(&root, Detail::Contents);
    for format in ["gnu", "oldgnu"] {
        let layer = packed(&root, &format!("{format}.tar"), &[&format!("--format={format}"), "--sparse"]);
        contents.assert_same(&Snapshot::take(&layer, Detail::Contents), &format!("the layer of {format}"));
        assert!(space(&layer.join("holes")) < 100, "{format}: the holes are zeros");
    }
    let contents = Snapshot::take(&plain, Detail::Contents);
    for format in ["v7", "ustar"] {
        let layer = packed(&plain, &format!("{format}.tar"), &[&format!("--format={format}")]);
        contents.assert_same(&Snapshot::take(&layer, Detail::Contents), &format!("the layer of {format}"));
    }
}

/// Makes an image with two layers and one with a third on top of them, in one layout.
pub fn image(setup: &Setup) -> (PathBuf, Vec<PathBuf>) {
    let [bottom, middle, upper] = ["bottom", "middle", "upper"].map(|name| setup.dir(name));
    put::file(&bottom, "a/below", "");
    put::file(&bottom, "b", "bottom");
    put::whiteout(&middle, "a", "below");
    put::file(&middle, "b", "middle");
    put::file(&upper, "c", "upper");
    let layout = setup.path("image");
    let tagged = |tag: &str| format!("{}:{tag}", layout.display());
    done(&[&"export", &"--lower", &bottom, &"--upper", &middle, &"--oci-layout", &tagged("two")]);
    let base = tagged("two");
    done(&[
        &"export",
        &"--lower",
        &middle,
        &"--lower",
        &bottom,
        &"--upper",
        &upper,
        &"--oci-layout",
        &tagged("three"),
        &"--base",
        &base,
    ]);
    (layout, vec![upper, middle, bottom])
}

/// An archive cannot have a socket. What it replaced stays hidden; one of a lower layer stays.
#[test]
fn a_socket_is_left_out_and_hides_what_it_replaced() {
    let setup = Setup::new();
    let [lower, upper] = ["lower", "upper"].map(|name| setup.dir(name));
    put::file(&lower, "file", "before");
    put::file(&lower, "dir/file", "before");
    put::file(&lower, "all/file", "before");
    let socket = |path: PathBuf| drop(UnixListener::bind(path).unwrap());
    for path in ["kept", "replaced"] {
        socket(lower.join(path));
    }
    setup.dir("upper/all");
    for path in ["file", "dir", "new", "replaced", "all/file"] {
        socket(upper.join(path));
    }
    // Two sockets that were made at nearly the same time may be equal.
    mode(&upper.join("replaced"), 0o600);
    let archive = setup.path("layer.tar");
    let output = tool(&[&"export", &"--lower", &lower, &"--upper", &upper, &archive]);
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("left out: 5 sockets"), "{said}");
    let mut stack = import(&archive, &setup.path("into"));
    stack.push(lower);
    let overlay = below(&stack);
    let root = overlay.root();
    assert_eq!(shown::entries(&overlay, root), ["all", "kept"]);
    let all = overlay.lookup(root, "all".as_ref()).unwrap();
    assert_eq!(shown::entries(&overlay, &all), [""; 0]);
}

#[test]
fn an_image_becomes_its_layers() {
    let setup = Setup::new();
    let (layout, layers) = image(&setup);
    let into = setup.path("into");
    let dirs = import(&format!("{}:three", layout.display()), &into);
    assert_eq!(dirs.len(), 3);
    for (dir, layer) in dirs.iter().zip(&layers) {
        let [imported, exported] = [dir, layer].map(|dir| Snapshot::take(dir, Detail::Xattrs));
        let marks: Vec<_> = imported.paths().collect();
        assert_eq!(marks, exported.paths().collect::<Vec<_>>());
        if !exported.paths().any(|path| path.ends_with(".wh.below")) {
            exported.assert_same(&imported, "the layer");
        }
    }
    // The smaller image has the lower two of them, so nothing is imported again.
    let before = Snapshot::take(&into, Detail::Everything);
    assert_eq!(import(&format!("{}:two", layout.display()), &into), dirs[1..]);
    before.assert_same(&Snapshot::take(&into, Detail::Everything), "the directory with the layers");
    let several = refused(&[&"import", &layout, &into]);
    let name = layout.display();
    assert_eq!(several, format!("the image layout {name} has several images: name one of the tags two, three"));
    let missing = refused(&[&"import", &format!("{name}:four"), &into]);
    assert_eq!(missing, format!("the image layout {name} has no image with the tag four, only: two, three"));
}

/// The same input gives the same image.
#[test]
fn an_image_depends_on_its_layers_alone() {
    let setup = Setup::new();
    let [lower, upper] = ["lower", "upper"].map(|name| setup.dir(name));
    tree(&lower);
    put::file(&upper, "new", "");
    for layout in ["one", "two"] {
        done(&[&"export", &"--lower", &lower, &"--upper", &upper, &"--oci-layout", &setup.path(layout)]);
    }
    let [one, two] = ["one", "two"].map(|layout| Snapshot::take(&setup.path(layout), Detail::Contents));
    one.assert_same(&two, "the second image");
}

#[test]
fn a_damaged_image_is_refused_and_an_import_goes_on_behind_it() {
    let setup = Setup::new();
    let (layout, _) = image(&setup);
    let into = setup.path("into");
    let source = format!("{}:three", layout.display());
    let dirs = import(&source, &into);
    let blobs = layout.join("blobs/sha256");
    let mut refusals = 0;
    for blob in names(&blobs) {
        let path = blobs.join(&blob);
        let good = fs::read(&path).unwrap();
        let mut other = good.clone();
        *other.last_mut().unwrap() ^= 1;
        for damaged in [[&good[..], b" "].concat(), other] {
            fs::write(&path, &damaged).unwrap();
            let target = setup.path("damaged");
            let output = tool(&[&"import", &source, &target]);
            let said = String::from_utf8(output.stderr).unwrap();
            // The manifest and the configuration of the smaller image are not read.
            if !output.status.success() {
                refusals += 1;
                assert!(said.contains(&blob) && said.contains("cannot "), "{said}");
                let left = if target.is_dir() { names(&target) } else { Vec::new() };
                assert!(left.iter().all(|name| into.join(name).is_dir()), "{left:?}: {said}");
            }
            fs::write(&path, &good).unwrap();
            // What was whole is not imported again, and the rest follows.
            assert_eq!(import(&source, &target).len(), dirs.len());
            fs::remove_dir_all(&target).unwrap();
        }
    }
    assert_eq!(refusals, 2 * (dirs.len() + 2), "each layer, the manifest and the configuration count");
}

#[test]
fn an_import_that_was_killed_goes_on() {
    let setup = Setup::new();
    let (layout, _) = image(&setup);
    let into = setup.dir("into");
    put::file(&into, "unfinished/d/e/f", "left by an import that was killed");
    let source = format!("{}:three", layout.display());
    assert_eq!(import(&source, &into).len(), 3);
    assert_eq!(names(&into).len(), 3);
}

/// An import is killed at many moments, and always goes on to the same layers.
#[test]
fn an_import_goes_on_after_each_of_many_kills() {
    let setup = Setup::new();
    let dirs = ["one", "two", "three"].map(|name| setup.dir(name));
    for (at, dir) in dirs.iter().enumerate() {
        for file in 0..100 {
            put::file(dir, &format!("{}/{file}", file % 7), vec![at as u8; 5000]);
        }
        put::whiteout(dir, "", "gone");
        put::link(dir, "1/1", "2/linked");
    }
    let layout = setup.path("image");
    let [one, two, three] = &dirs;
    done(&[&"export", &"--lower", two, &"--lower", one, &"--upper", three, &"--oci-layout", &layout]);
    let whole = setup.path("whole");
    let start = Instant::now();
    import(&layout, &whole);
    let longest = start.elapsed();
    let layers = names(&whole);
    let wanted: Vec<_> = layers.iter().map(|name| Snapshot::take(&whole.join(name), Detail::Xattrs)).collect();

    let mut random = Random(3);
    let (mut killed, mut left) = (0, 0);
    for round in 0..12 {
        let into = setup.path("into");
        let mut child = Command::new(env!("CARGO_BIN_EXE_overlayfs-layer"))
            .args(["import", "--quiet"])
            .args([&layout, &into])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(longest * random.below(1000) as u32 / 1000);
        child.kill().unwrap();
        killed += usize::from(!child.wait().unwrap().success());
        for name in if into.exists() { names(&into) } else { Vec::new() } {
            left += usize::from(name == "unfinished");
            assert!(name == "unfinished" || layers.contains(&name), "round {round}: {name}");
        }
        // Two kills may come one after the other.
        if round % 4 > 0 {
            import(&layout, &into);
            assert_eq!(names(&into), layers, "round {round}");
            for (name, wanted) in layers.iter().zip(&wanted) {
                let what = format!("round {round}, {name}");
                wanted.assert_same(&Snapshot::take(&into.join(name), Detail::Xattrs), &what);
            }
            fs::remove_dir_all(&into).unwrap();
        }
    }
    assert!(killed > 4 && left > 1, "{killed} imports were killed, and {left} left something");
}

#[test]
fn two_imports_into_one_directory_are_refused() {
    let setup = Setup::new();
    let (layout, _) = image(&setup);
    let into = setup.dir("into");
    let held = OsLayer::open(&into, true).unwrap();
    held.hold().unwrap();
    let said = refused(&[&"import", &format!("{}:two", layout.display()), &into]);
    let into = into.canonicalize().unwrap();
    assert_eq!(said, format!("another program works on {}: let it finish first", into.display()));
}

/// What an image layer cannot say is refused by its path; the file is not made.
#[test]
fn an_export_refuses_what_readers_would_take_for_something_else() {
    let setup = Setup::new();
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| setup.dir(name));
    let overlay = Overlay::new(layers(Some(&upper), Some(&work), std::slice::from_ref(&lower))).unwrap();
    let root = Owner { uid: 0, gid: 0 };
    overlay.create_node(overlay.root(), OsStr::new("zero"), Kind::CharDev, 0o600, 0, root).unwrap();
    drop(overlay);
    let file = setup.path("x.tar");
    let said = refused(&[&"export", &"--lower", &lower, &"--upper", &upper, &"--work", &work, &file]);
    assert_eq!(said, "cannot export zero: readers of image layers take a character device 0/0 for a deletion");
    assert!(!test_common::exists(&file) && !test_common::exists(&setup.path("x.tar.new")));
}

/// The list of holes of a file with very many has an end, since readers bound it.
#[test]
fn an_export_on_other_lower_layers_says_so() {
    let setup = Setup::new();
    let [lower, other, upper, work] = ["lower", "other", "upper", "work"].map(|name| setup.dir(name));
    put::file(&lower, "gone", "");
    let overlay = Overlay::new(layers(Some(&upper), Some(&work), std::slice::from_ref(&lower))).unwrap();
    overlay.unlink(overlay.root(), OsStr::new("gone")).unwrap();
    drop(overlay);
    let image = setup.path("image");
    let places: [[&dyn AsRef<OsStr>; 2]; 2] = [[&"--format=tar", &"-"], [&"--oci-layout", &image]];
    for ([option, place], (lower, is_told)) in
        places.into_iter().flat_map(|place| [(place, (&lower, false)), (place, (&other, true))])
    {
        let output = tool(&[&"export", &"--lower", lower, &"--upper", &upper, &"--work", &work, option, place]);
        assert!(output.status.success());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.contains("was mounted last on other lower layers"), is_told, "{said}");
        assert_eq!(said.is_empty(), !is_told, "{said}");
    }
}

#[test]
fn a_file_with_many_holes_is_exported() {
    let setup = Setup::in_memory();
    let [lower, upper] = ["lower", "upper"].map(|name| setup.dir(name));
    let file = File::create(upper.join("holes")).unwrap();
    for piece in 0..17_000 {
        file.write_all_at(b"x", piece * 8192).unwrap();
    }
    drop(file);
    let archive = setup.path("x.tar");
    done(&[&"export", &"--lower", &lower, &"--upper", &upper, &archive]);
    let layer = import(&archive, &setup.path("into")).remove(0);
    let [before, after] = [&upper, &layer].map(|dir| Snapshot::take(dir, Detail::Xattrs));
    before.assert_same(&after, "the layer");
    let script = "import sys, tarfile\ntarfile.open(sys.argv[1]).extractall(sys.argv[2])";
    let unpacked = setup.dir("python");
    run(Command::new("python3").args(["-c", script]).arg(&archive).arg(&unpacked));
    assert_eq!(fs::read(unpacked.join("holes")).unwrap(), fs::read(upper.join("holes")).unwrap());
}

/// An archive from standard input, and one to standard output.
#[test]
fn archives_go_through_pipes() {
    let setup = Setup::new();
    let [lower, upper] = ["lower", "upper"].map(|name| setup.dir(name));
    tree(&upper);
    let script = r#""$1" export --lower "$2" --upper "$3" --format tar.zst - | zstd -dc | "$1" import - "$4""#;
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script, "bash", env!("CARGO_BIN_EXE_overlayfs-layer")]);
    run(command.arg(&lower).arg(&upper).arg(setup.path("into")));
    let layer = setup.path("into").join(&names(&setup.path("into"))[0]);
    let [before, after] = [&upper, &layer].map(|dir| Snapshot::take(dir, Detail::Xattrs));
    before.assert_same(&after, "the layer");
}

/// Makes a file with so many names in several directories, and as many files with two names.
fn linked(root: &Path, count: usize) {
    for number in 0..count {
        let dir = number % 7;
        if number < 7 {
            fs::create_dir_all(root.join(dir.to_string())).unwrap();
        }
        match number {
            0 => drop(put::file(root, "0/many-0", "content")),
            _ => drop(put::link(root, "0/many-0", &format!("{dir}/many-{number}"))),
        }
        put::file(root, &format!("{dir}/pair-{number}"), "");
        put::link(root, &format!("{dir}/pair-{number}"), &format!("{}/other-{number}", count.min(7) - 1));
    }
}

/// Each name costs the same, however many there are.
#[test]
fn many_hard_links_cost_the_same_each() {
    let calls = |count: usize| {
        let setup = Setup::new();
        let [upper, into] = ["upper", "into"].map(|name| setup.dir(name));
        linked(&upper, count);
        let (written, read) = (Counts::default(), Counts::default());
        let open = |path: &Path, for_writing, counts| Counted::new(OsLayer::open(path, for_writing).unwrap(), counts);
        let layers = |lowers| Layers { upper: None, work: None, lowers };
        let views = Views::new(layers(vec![open(&upper, false, &written)]), layers(Vec::new())).unwrap();
        let name = Path::new("layer.tar");
        let (archive, _) = write_layer(&views, Vec::new(), name, Holes::Kept, &()).unwrap();
        import_layer(&*archive, name, open(&into, true, &read), Wishes::default(), &()).unwrap();
        let imported = into.join(&names(&into)[0]);
        let links = |path: &str| fs::metadata(imported.join(path)).unwrap().nlink() as usize;
        assert_eq!((links("0/many-0"), links("0/pair-0")), (count, 2));
        let before = Snapshot::take(&upper, Detail::Contents);
        before.assert_same(&Snapshot::take(&imported, Detail::Contents), &format!("{count} links"));
        [written, read].map(|counts| counts.tally().total())
    };
    let (few, many) = (calls(1000), calls(4000));
    for (few, many) in few.into_iter().zip(many) {
        assert!(many <= 4 * few + few / 10, "{few} calls for some links, {many} for four times as many");
    }
}

/// In the kernel's format a file may have the name of a deletion. An archive cannot say that.
#[test]
fn a_file_with_the_name_of_a_deletion_is_refused() {
    let setup = Setup::new();
    let [lower, upper, _] = ["lower", "upper", "work"].map(|name| setup.dir(name));
    put::file(&lower, "dir/file", "");
    rustix::fs::setxattr(&upper, "trusted.overlay.format", b"kernel", rustix::fs::XattrFlags::CREATE).unwrap();
    put::file(&upper, "dir/.wh.file", "content");
    let archive = setup.path("layer.tar");
    let said = refused(&[&"export", &"--lower", &lower, &"--upper", &upper, &archive]);
    let cause = "image layers take a name that begins with .wh. for a deletion";
    assert_eq!(said, format!("cannot export dir/.wh.file: {cause}"));
    assert!(!archive.exists());
}
