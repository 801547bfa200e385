//! Archives of images: those with an image layout, those of `docker save`, and hostile ones.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use overlayfs::layer_tools::archive::compress::{Digest, decompress};
use serde_json::{Value, json};
use test_common::{Setup, names, put};

use crate::{done, import, others, refused, run};

/// Packs what a directory has, as these names or all of it.
fn packed(dir: &Path, options: &[&str], names: &[&str]) -> PathBuf {
    let archive = dir.with_extension("tar");
    run(Command::new("tar").arg("-cf").arg(&archive).args(options).arg("-C").arg(dir).args(names));
    archive
}

fn document(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Makes what `docker save` writes of an image with three layers. The files of the layers have
/// these names; `{}` stands for the digest.
fn docker(setup: &Setup, layer_name: &str) -> PathBuf {
    let (layout, _) = others::image(setup);
    let dir = setup.dir("docker");
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        layout.join("blobs/sha256").join(digest)
    };
    let index = document(&layout.join("index.json"));
    let manifest = document(&blob(&index["manifests"][1]));
    let config = fs::read(blob(&manifest["config"])).unwrap();
    let config_name = format!("{}.json", Digest::of(&config).hex());
    fs::write(dir.join(&config_name), &config).unwrap();
    let mut layers = Vec::new();
    for layer in manifest["layers"].as_array().unwrap() {
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut decompress(&fs::read(blob(layer)).unwrap()[..]).unwrap(), &mut plain).unwrap();
        let name = layer_name.replace("{}", &Digest::of(&plain).hex());
        put::file(&dir, &name, plain);
        layers.push(name);
    }
    let image = json!({"Config": config_name, "RepoTags": ["registry:5000/name:one"], "Layers": layers});
    fs::write(dir.join("manifest.json"), json!([image]).to_string()).unwrap();
    dir
}

/// Changes the list of images, and returns the sentence with which the archive is refused.
fn refused_with(dir: &Path, change: impl Fn(&mut Value)) -> String {
    let list = dir.join("manifest.json");
    let before = fs::read(&list).unwrap();
    let mut changed = document(&list);
    change(&mut changed[0]);
    fs::write(&list, changed.to_string()).unwrap();
    let said = refused_whole(dir);
    fs::write(&list, before).unwrap();
    said
}

/// Returns the sentence with which the archive of a directory is refused. No layer is left.
fn refused_whole(dir: &Path) -> String {
    let into = dir.with_extension("refused");
    let archive = packed(dir, &[], &["."]);
    let said = refused(&[&"import", &archive, &into]);
    assert_eq!(if into.exists() { names(&into) } else { Vec::new() }, [""; 0], "{said}");
    said.replace(archive.to_str().unwrap(), "x.tar")
}

#[test]
fn the_archive_of_a_layout_is_the_image() {
    let setup = Setup::new();
    let (layout, _) = others::image(&setup);
    let dirs = import(&format!("{}:three", layout.display()), &setup.path("into"));
    for (options, members) in [
        (&[][..], &["."][..]),
        (&[], &["index.json", "blobs", "oci-layout"]),
        (&["--format=v7"], &["oci-layout", "blobs", "index.json"]),
        (&["--format=posix", "--sparse"], &["blobs", "oci-layout", "index.json"]),
    ] {
        let archive = packed(&layout, options, members);
        let again = import(&format!("{}:three", archive.display()), &setup.path("again"));
        assert_eq!(again.iter().map(|dir| dir.file_name()).collect::<Vec<_>>(), {
            dirs.iter().map(|dir| dir.file_name()).collect::<Vec<_>>()
        });
        fs::remove_dir_all(setup.path("again")).unwrap();
    }
    let archive = packed(&layout, &[], &["."]);
    let several = refused(&[&"import", &archive, &setup.path("again")]);
    let name = archive.display();
    assert_eq!(several, format!("the image layout {name} has several images: name one of the tags two, three"));
}

#[test]
fn the_archive_of_docker_is_the_image() {
    for form in ["{}.tar", "{}/layer.tar", "blobs/sha256/{}"] {
        let setup = Setup::new();
        let dir = docker(&setup, form);
        let dirs = import(&format!("{}:three", setup.path("image").display()), &setup.path("into"));
        let archive = packed(&dir, &[], &["."]);
        for source in ["", ":one", ":registry:5000/name:one"] {
            let again = import(&format!("{}{source}", archive.display()), &setup.path("into"));
            assert_eq!(again, dirs, "{form}{source}");
        }
        let into = setup.path("other");
        assert_eq!(import(&archive, &into).len(), 3, "{form}: without what is there already");
    }
}

/// Older versions of docker write a layer once, and symlinks to it.
#[test]
fn a_layer_may_be_a_link_in_the_archive() {
    let setup = Setup::new();
    let dir = docker(&setup, "{}.tar");
    let [first, second] = ["a", "b"].map(|letter| letter.repeat(64));
    let layers: Vec<_> = document(&dir.join("manifest.json"))[0]["Layers"].as_array().unwrap().clone();
    let layers: Vec<_> = layers.iter().map(|layer| layer.as_str().unwrap().to_owned()).collect();
    put::symlink(&dir, &format!("{first}/layer.tar"), &format!("../{second}/layer.tar"));
    put::symlink(&dir, &format!("{second}/layer.tar"), &format!("../{}", layers[0]));
    put::link(&dir, &layers[1], "linked.tar");
    let list = dir.join("manifest.json");
    let mut changed = document(&list);
    changed[0]["Layers"] = json!([format!("{first}/layer.tar"), "linked.tar", layers[2]]);
    fs::write(&list, changed.to_string()).unwrap();
    assert_eq!(import(&packed(&dir, &[], &["."]), &setup.path("into")).len(), 3);
}

/// No name in an archive leads to a file of the system.
#[test]
fn a_hostile_archive_of_docker_is_refused() {
    let setup = Setup::new();
    let dir = docker(&setup, "{}.tar");
    let missing = |name: &str| format!("cannot read x.tar/{name}: entity not found");
    for name in ["../outside.tar", "missing.tar", "../../etc/passwd"] {
        let said = refused_with(&dir, |image| image["Layers"][0] = json!(name));
        assert_eq!(said, missing(name));
    }
    assert_eq!(
        refused_with(&dir, |image| image["Layers"][0] = json!("/etc/passwd")),
        "cannot read /etc/passwd: entity not found"
    );
    assert_eq!(refused_with(&dir, |image| image["Config"] = json!("../x.json")), missing("../x.json"));
    let short = "it does not have the digest of each layer";
    let said = refused_with(&dir, |image| image["Layers"] = json!(["a.tar"]));
    assert!(said.ends_with(short), "{said}");
    let said = refused_with(&dir, |image| image["Layers"][2] = json!(7));
    assert_eq!(said, "cannot read x.tar/manifest.json: the name of a layer is no text");

    // A symlink to the outside, and symlinks in a circle.
    let outside = put::file(setup.root(), "outside.tar", "outside");
    let layer = document(&dir.join("manifest.json"))[0]["Layers"][0].as_str().unwrap().to_owned();
    let good = fs::read(dir.join(&layer)).unwrap();
    for target in [outside.to_str().unwrap(), "../outside.tar"] {
        fs::remove_file(dir.join(&layer)).unwrap();
        symlink(target, dir.join(&layer)).unwrap();
        // It is no archive of an image then, and as a layer it has an image in it.
        let said = refused_whole(&dir);
        assert_eq!(said, "cannot use x.tar: it is the archive of an image: import it from a file, without compression");
    }
    fs::remove_file(dir.join(&layer)).unwrap();
    symlink(&layer, dir.join(&layer)).unwrap();
    assert_eq!(refused_whole(&dir), missing(&layer));
    fs::remove_file(dir.join(&layer)).unwrap();

    // Another content.
    let mut changed = good.clone();
    changed[600] ^= 1;
    fs::write(dir.join(&layer), &changed).unwrap();
    assert!(refused_whole(&dir).contains(&layer));
    fs::write(dir.join(&layer), &good).unwrap();
    let config = document(&dir.join("manifest.json"))[0]["Config"].as_str().unwrap().to_owned();
    let bytes = [&fs::read(dir.join(&config)).unwrap()[..], b" "].concat();
    fs::write(dir.join(&config), bytes).unwrap();
    let said = refused_whole(&dir);
    assert!(said.starts_with(&format!("cannot use x.tar/{config}: its digest is not ")), "{said}");
}

#[test]
fn a_hostile_archive_of_a_layout_is_refused() {
    let setup = Setup::new();
    let (layout, _) = others::image(&setup);
    run(Command::new("sed").arg("-i").arg(r#"s/"two"/"latest"/"#).arg(layout.join("index.json")));
    let digest = |value: &Value| value["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
    let index = document(&layout.join("index.json"));
    let manifest = digest(&index["manifests"][0]);
    let layer = digest(&document(&layout.join("blobs/sha256").join(&manifest))["layers"][0]);
    for blob in [manifest, layer] {
        let path = layout.join("blobs/sha256").join(&blob);
        let good = fs::read(&path).unwrap();
        let mut other = good.clone();
        *other.last_mut().unwrap() ^= 1;
        fs::write(&path, other).unwrap();
        let said = refused_whole(&layout);
        assert!(said.contains(&format!(" x.tar/blobs/sha256/{blob}: ")), "{said}");
        fs::remove_file(&path).unwrap();
        assert_eq!(refused_whole(&layout), format!("cannot read x.tar/blobs/sha256/{blob}: entity not found"));
        fs::write(&path, good).unwrap();
    }
}

/// The archive of an image is no layer, in whatever way it comes. A layer with similar names is
/// one.
#[test]
fn an_image_is_no_layer() {
    let setup = Setup::new();
    let dir = docker(&setup, "{}.tar");
    let archive = packed(&dir, &[], &["."]);
    run(Command::new("gzip").arg("-k").arg(&archive));
    let compressed = archive.with_extension("tar.gz");
    let into = setup.path("into");
    let said = refused(&[&"import", &compressed, &into]);
    let cause = "it is the archive of an image: import it from a file, without compression";
    assert_eq!(said, format!("cannot use {}: {cause}", compressed.display()));
    assert_eq!(names(&into), [""; 0]);

    let layer = setup.dir("layer");
    put::file(&layer, "manifest.json", r#"{"name": "an application"}"#);
    put::file(&layer, "index.json", "[]");
    put::file(&layer, "oci-layout", "no layout");
    put::file(&layer, "blobs/one", "");
    assert_eq!(names(&import(&packed(&layer, &[], &["."]), &into)[0]).len(), 4);
}

/// An export on top of an image in an archive has the layers of that image, and one more.
#[test]
fn the_archive_of_an_image_can_be_a_base() {
    let setup = Setup::new();
    let archives = {
        let docker = packed(&docker(&setup, "{}.tar"), &[], &["."]);
        let layout = packed(&setup.path("image"), &[], &["."]);
        [format!("{}:registry:5000/name:one", docker.display()), format!("{}:three", layout.display())]
    };
    let into = setup.path("into");
    let below = import(&format!("{}:three", setup.path("image").display()), &into);
    let top = setup.dir("top");
    put::file(&top, "d", "top");
    let lowers: Vec<_> = below.iter().flat_map(|dir| ["--lower".as_ref(), dir.as_os_str()]).collect();
    let export = |base: &str, name: &str| {
        let image = setup.path(name);
        let mut words: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"export"];
        words.extend(lowers.iter().map(|word| word as &dyn AsRef<std::ffi::OsStr>));
        words.extend([&"--upper" as &dyn AsRef<std::ffi::OsStr>, &top, &"--oci-layout", &image, &"--base", &base]);
        (done(&words), image).1
    };
    for (index, base) in archives.iter().enumerate() {
        let image = export(base, &format!("new-{index}"));
        let dirs = import(&image, &into);
        assert_eq!(dirs[1..], below, "{base}");
        assert_eq!(names(&dirs[0]), ["d"], "{base}");
    }

    // A layer of docker with another content.
    let dir = setup.path("docker");
    let list = document(&dir.join("manifest.json"));
    let layer = dir.join(list[0]["Layers"][1].as_str().unwrap());
    let mut content = fs::read(&layer).unwrap();
    content[600] ^= 1;
    fs::write(&layer, content).unwrap();
    let archive = packed(&dir, &[], &["."]);
    let image = setup.path("refused");
    let said =
        refused(&[&"export", &"--lower", &below[0], &"--upper", &top, &"--oci-layout", &image, &"--base", &archive]);
    assert!(said.contains("its digest is sha256:") && said.contains(", and its image says sha256:"), "{said}");
}
