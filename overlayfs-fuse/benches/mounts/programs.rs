//! The rows of programs that install and build: dpkg, npm and cargo.

use std::fs::{self, File};
use std::io::{Result, Write};
use std::path::Path;

use crate::rows::{Size, run};

/// The number of files in a package.
const FILES: usize = 40;
/// The number of modules in the crate.
const MODULES: usize = 40;

/// Makes this many packages for dpkg, and as many for npm.
pub fn make_packages(dir: &Path, count: usize) -> Result<()> {
    for index in 0..count {
        let deb = dir.join("deb");
        fs::create_dir_all(deb.join("DEBIAN"))?;
        let control = format!(
            "Package: row-{index}\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\n\
             Description: a package of the benchmark\n"
        );
        fs::write(deb.join("DEBIAN/control"), control)?;
        make_files(&deb.join(format!("usr/share/row-{index}")))?;
        let name = format!("row-{index}.deb");
        run(dir, "dpkg-deb", &["--root-owner-group", "-Zgzip", "-z1", "-b", "deb", &name])?;
        fs::remove_dir_all(&deb)?;
        let npm = dir.join("package");
        make_files(&npm.join("lib"))?;
        fs::write(npm.join("package.json"), format!(r#"{{"name": "row-{index}", "version": "1.0.0"}}"#))?;
        run(dir, "tar", &["-czf", &format!("row-{index}.tgz"), "package"])?;
        fs::remove_dir_all(&npm)?;
    }
    for name in ["status", "available"] {
        fs::create_dir_all(dir.join("root/var/lib/dpkg"))?;
        File::create(dir.join("root/var/lib/dpkg").join(name))?;
    }
    fs::create_dir_all(dir.join("root/var/lib/dpkg/info"))?;
    fs::create_dir_all(dir.join("root/var/lib/dpkg/updates"))?;
    fs::write(dir.join("package.json"), r#"{"name": "rows", "version": "1.0.0"}"#)
}

fn make_files(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    (0..FILES)
        .try_for_each(|index| fs::write(dir.join(format!("file-{index}.js")), format!("// {index}\n").repeat(200)))
}

/// Makes a crate without dependencies.
pub fn make_crate(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir.join("src"))?;
    fs::write(
        dir.join("Cargo.toml"),
        "[package]\nname = \"row\"\nversion = \"1.0.0\"\nedition = \"2021\"\n[workspace]\n",
    )?;
    let mut main = File::create(dir.join("src/main.rs"))?;
    writeln!(main, "#![allow(dead_code)]")?;
    for index in 0..MODULES {
        writeln!(main, "mod part_{index};")?;
        let functions: String = (0..50)
            .map(|f| format!("pub fn f{f}(x: u64) -> String {{ format!(\"{{}} {{:?}}\", x + {f}, vec![x; {f}]) }}\n"))
            .collect();
        fs::write(dir.join(format!("src/part_{index}.rs")), functions)?;
    }
    let calls: String = (0..MODULES).map(|index| format!("println!(\"{{}}\", part_{index}::f7(1)); ")).collect();
    writeln!(main, "fn main() {{ {calls}}}")
}

/// Installs every package below `root`.
pub fn dpkg(view: &Path, size: Size) -> Result<()> {
    let names: Vec<_> = (0..size.packages).map(|index| format!("row-{index}.deb")).collect();
    let mut words = vec!["--root=root", "--log=/dev/null", "-i"];
    words.extend(names.iter().map(String::as_str));
    run(view, "dpkg", &words)
}

/// Installs every package into `node_modules`, without a registry.
pub fn npm(view: &Path, size: Size) -> Result<()> {
    let names: Vec<_> = (0..size.packages).map(|index| format!("./row-{index}.tgz")).collect();
    let mut words = vec!["install", "--offline", "--no-audit", "--no-fund", "--silent", "--cache=.cache"];
    words.extend(names.iter().map(String::as_str));
    run(view, "npm", &words)
}

/// Builds the crate in the mount.
pub fn cargo(view: &Path, _: Size) -> Result<()> {
    run(view, env!("CARGO"), &["build", "--offline", "--quiet", "--target-dir", "target"])
}
