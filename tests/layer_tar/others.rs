//! Archives between this program and others: GNU tar, Python, and images without tools for them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use overlayfs::layer::{Kind, Layer, OsLayer, Owner};
use overlayfs::overlay::Overlay;
use rustix::fs::FileType;
use test_common::{Detail, Setup, Snapshot, mode, names, owner, put, times};

use crate::{done, import, layers, refused, run, tool};

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
fn image(setup: &Setup) -> (PathBuf, Vec<PathBuf>) {
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
