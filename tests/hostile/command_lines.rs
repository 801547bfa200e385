//! Command lines and lists of options, of any bytes. The parser takes each, or refuses it with a
//! sentence. A path that is escaped as the documents say reads back unchanged.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use overlayfs::client::Line;
use overlayfs::fsck::options::Command as CheckCommand;
use overlayfs::layer_tools::options::Command as LayerCommand;
use overlayfs::options::Options;
use overlayfs_fuse::options::Command as MountCommand;

/// Parses `input` as the words of each command line, separated by zeros. Also parses it as a list
/// behind `-o`, and as a path.
pub fn run(input: &[u8]) {
    let words = || input.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec()));
    say(Line::parse(words()));
    say(CheckCommand::parse(words()));
    say(LayerCommand::parse(words()));
    say(MountCommand::parse(words()));
    let list = || ["-o", "", "overlay"].into_iter().map(|word| if word.is_empty() { input } else { word.as_bytes() });
    say(Line::parse(list().map(|word| OsString::from_vec(word.to_vec()))));
    say(MountCommand::parse(list().map(|word| OsString::from_vec(word.to_vec()))));

    // The parser reads a value that begins with a quote up to the next quote.
    if !input.is_empty() && !input.contains(&0) && input[0] != b'"' {
        let escaped: Vec<u8> = input
            .iter()
            .flat_map(|byte| match byte {
                b',' | b':' | b'\\' => vec![b'\\', *byte],
                _ => vec![*byte],
            })
            .collect();
        let list =
            [b"lowerdir=", &escaped[..], b":", &escaped, b",upperdir=", &escaped, b",workdir=", &escaped].concat();
        let mut options = Options::default();
        options.add_list(OsStr::from_bytes(&list)).unwrap();
        let path = OsStr::from_bytes(input);
        assert_eq!(options.lowers, [path, path]);
        assert_eq!((options.upper, options.work), (Some(path.into()), Some(path.into())));
    }
}

fn say<T>(parsed: Result<T, overlayfs::options::Error>) {
    if let Err(error) = parsed {
        let sentence = error.to_string();
        assert!(sentence.ends_with(['.', '?']), "{sentence}");
    }
}
