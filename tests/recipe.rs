//! The recipe for the build system of Redox may have only fields that its parser knows. The parser
//! is `src/recipe.rs` of the crate `redox_cookbook`, as of August 2026. It ignores unknown fields
//! without a message.

use serde::Deserialize;
use toml::de::Error;

const RECIPE: &str = include_str!("../recipe.toml");
/// The line of [`RECIPE`] that its comment says to replace.
const GIT: &str = "git = \"https://gitlab.redox-os.org/redox-os/overlayfs.git\"";

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Recipe {
    source: Source,
    build: Build,
    package: Option<Package>,
}

/// The source, in one of the ways that make sense for this project.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(untagged)]
enum Source {
    Git(Git),
    Path(Path),
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Git {
    git: String,
    upstream: Option<String>,
    branch: Option<String>,
    rev: Option<String>,
    shallow_clone: Option<bool>,
    #[serde(default)]
    patches: Vec<String>,
    script: Option<String>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Path {
    path: String,
}

/// The build: of all templates, the one that this project needs.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(tag = "template", rename_all = "lowercase", deny_unknown_fields)]
enum Build {
    Cargo {
        cargopath: Option<String>,
        #[serde(default)]
        cargoflags: Vec<String>,
        #[serde(default)]
        cargopackages: Vec<String>,
        #[serde(default)]
        cargoexamples: Vec<String>,
        #[serde(default)]
        clearlocked: bool,
        #[serde(default)]
        cargopackagesprefixed: bool,
        #[serde(default)]
        dependencies: Vec<String>,
        #[serde(default, rename = "dev-dependencies")]
        dev_dependencies: Vec<String>,
    },
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Package {
    #[serde(default)]
    dependencies: Vec<String>,
    version: Option<String>,
    description: Option<String>,
}

/// Returns the recipe with this source.
fn recipe(source: Source) -> Recipe {
    let build = Build::Cargo {
        cargopath: None,
        cargoflags: Vec::new(),
        cargopackages: Vec::new(),
        cargoexamples: Vec::new(),
        clearlocked: false,
        cargopackagesprefixed: false,
        dependencies: Vec::new(),
        dev_dependencies: Vec::new(),
    };
    Recipe { source, build, package: None }
}

fn parse(text: &str) -> Result<Recipe, Error> {
    toml::from_str(text)
}

#[test]
fn the_recipe_parses() {
    let git = "https://gitlab.redox-os.org/redox-os/overlayfs.git".to_owned();
    assert_eq!(parse(RECIPE), Ok(recipe(Source::Git(Git { git, ..Git::default() }))));
}

#[test]
fn the_recipe_parses_with_a_local_checkout() {
    assert!(RECIPE.lines().any(|line| line == GIT));
    let text = RECIPE.replace(GIT, "path = \"/where/it/is\"");
    assert_eq!(parse(&text), Ok(recipe(Source::Path(Path { path: "/where/it/is".to_owned() }))));
}

#[test]
fn unknown_fields_are_found() {
    for line in ["commit = \"main\"", "path = \"/where/it/is\"", "gti = \"https://example.org\""] {
        assert!(parse(&RECIPE.replace(GIT, &format!("{GIT}\n{line}"))).is_err(), "{line}");
    }
    for line in
        ["template = \"crago\"", "template = \"cargo\"\ncargo_flags = []", "template = \"cargo\"\nscript = \"\""]
    {
        assert!(parse(&RECIPE.replace("template = \"cargo\"", line)).is_err(), "{line}");
    }
}
