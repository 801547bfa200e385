//! The tools for upper layers.

use super::{Explained, Group, Program, option};

/// `overlayfs-layer`.
pub const PROGRAM: Program = Program {
    name: "overlayfs-layer",
    about: "lists, keeps, moves and removes the changes in the upper directory of an overlay",
    forms: &["COMMAND --lower DIR [--lower DIR ...] --upper DIR [--work DIR] [OPTION ...]"],
    before: "Name the directories of the mount, in the same order.",
    commands: &[
        ("diff", "List what the upper directory changes."),
        ("commit", "Merge the upper directory into the topmost lower one."),
        ("vacuum", "Remove from the upper directory what the lower ones show too, and marks that hide nothing."),
    ],
    groups: &[LAYERS, DIFF, COMMIT, VACUUM, ITEMS],
    after: "The exit status is 0 after success; 1 if diff found changes; 2 if the command line is wrong; 3 if the \
            command refused its work or failed; 130 if it was stopped.",
};

const LAYERS: Group = Group {
    title: "Options of all commands",
    options: &[
        option("--lower DIR", "A directory that is only read. The first one is the topmost."),
        option("--upper DIR", "The upper directory."),
        option("--work DIR", "The work directory. Without this option it is the one inside the upper directory."),
        option("-q, --quiet", "Show no progress."),
        option("-h, --help", "Print a summary of the options."),
        option("-V, --version", "Print the version."),
        Explained {
            form: "-o LIST",
            brief: "The layers as a list with commas, as for the mount. Other options of a mount have no effect here.",
            more: "So the list of a mount works here, as far as the daemon for Redox knows its options.",
        },
    ],
};

const DIFF: Group = Group {
    title: "Options of diff",
    options: &[
        option(
            "--from DIR",
            "Compare with the directory DIR instead of the lower ones. The option may come more than once, the \
             topmost first. `--upper` is not needed then.",
        ),
        option("--content", "Also print the lines that differ, as `diff -u` does."),
        option("--stat", "Print only the sums of objects and bytes."),
        option("--json", "Print each change as a JSON object on a line."),
        option("-0", "Print raw paths, and a zero byte behind each field."),
    ],
};

const COMMIT: Group = Group {
    title: "Options of commit",
    options: &[
        option("--dry-run", "List the changes, and make none."),
        option("--resume", "Only go on with a commit that was interrupted. Any commit does that by itself."),
    ],
};

const VACUUM: Group = Group {
    title: "Options of vacuum",
    options: &[
        option("--dry-run", "Only list what would go."),
        Explained {
            form: "--ignore-times",
            brief: "Remove objects of which only the times differ, too.",
            more: "They show the times of the lower directories then.",
        },
    ],
};

const ITEMS: Group = Group {
    title: "Items of the list after -o",
    options: &[
        option("lowerdir=DIR[:DIR ...]", "As `--lower` for each of the directories."),
        option("lowerdir+=DIR", "As `--lower`. A colon is part of the path."),
        option("upperdir=DIR", "As `--upper`."),
        option("workdir=DIR", "As `--work`."),
        option(
            "ro, rw, volatile, reuse_volatile, whole_copies, userxattr, redirect_dir=on|off|follow",
            "Accepted without effect.",
        ),
    ],
};
