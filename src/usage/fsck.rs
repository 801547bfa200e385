//! The check of an upper directory.

use super::{Explained, Group, ITEMS, Program, option};

/// `overlayfs-fsck`.
pub const PROGRAM: Program = Program {
    name: "overlayfs-fsck",
    about: "looks for damage in the upper directory of an overlay, and repairs it",
    forms: &[
        "--lower DIR [--lower DIR ...] --upper DIR [--work DIR] [-n | -y]",
        "-o lowerdir=DIR[:DIR ...],upperdir=DIR[,workdir=DIR] [-n | -y]",
    ],
    before: "Name the directories of the mount, in the same order: with other lower directories, useful markers look \
             useless. If they are not those of the last mount, the program says so, and repairs nothing that depends \
             on them. Each finding is a line with the fault and its remedy. No repair changes the merged tree. The \
             program leaves all other findings alone.",
    commands: &[],
    groups: &[
        Group {
            title: "Options",
            options: &[
                option("--lower DIR", "A directory that is only read. The first one is the topmost."),
                option("--upper DIR", "The directory to check."),
                option(
                    "--work DIR",
                    "The work directory. Without this option it is the one inside the upper directory.",
                ),
                option("-n", "Print findings and write nothing. This is the default."),
                option("-y", "Repair each finding that can be repaired. The overlay must not be mounted."),
                option("-h, --help", "Print a summary of the options."),
                option("-V, --version", "Print the version."),
                Explained {
                    form: "-o LIST",
                    brief: "The same as a list with commas, as for the mount. Other options of a mount have no effect \
                            here.",
                    more: "So the list of a mount works here, as far as the daemon for Redox knows its options.",
                },
            ],
        },
        ITEMS,
    ],
    after: "While the overlay is mounted, the program checks only its tree. A finding may then be an unfinished \
            change. During a check the layers cannot be mounted. The exit status is the sum of: 1 damage was \
            repaired; 4 damage is left; 8 the check failed; 16 the command line is wrong. It is 0 if there is no \
            damage.",
};
