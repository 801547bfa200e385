//! The check of an upper directory.

use super::{Explained, Group, Program, option};

pub const PROGRAM: Program = Program {
    name: "overlayfs-fsck",
    about: "looks for damage in the upper directory of an overlay, and repairs it",
    forms: &[
        "--lower DIR [--lower DIR ...] --upper DIR [--work DIR] [-n | -y]",
        "-o lowerdir=DIR[:DIR ...],upperdir=DIR[,workdir=DIR] [-n | -y]",
    ],
    before: "Name the directories with which the overlay is mounted, in the same order: with other lower ones, what is needed looks \
             useless. If they are not those of the last mount, the program says so, and repairs nothing that depends on them. Each \
             finding is a line: what is wrong, and what can be done about it. No repair changes what the overlay shows; the rest is \
             left alone.",
    groups: &[
        Group {
            title: "Options",
            options: &[
                option("--lower DIR", "A directory that is only read. The first one is the topmost."),
                option("--upper DIR", "The directory that is checked."),
                option("--work DIR", "Its work directory. Without this option, the one inside the upper directory."),
                option("-n", "Write nothing, only say what is wrong. This is the default."),
                option("-y", "Repair what can be repaired. The overlay must not be mounted."),
                option("-h, --help", "Print a summary of the options."),
                option("-V, --version", "Print the version."),
                Explained {
                    form: "-o LIST",
                    brief: "The same as a list with commas, as for the mount. The other options of a mount have no effect here.",
                    more: "So the list of a mount can be given as it is, as far as the daemon for Redox knows its options.",
                },
            ],
        },
        Group {
            title: "In a list behind -o",
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
        },
    ],
    after: "While the overlay is mounted, only its tree is checked, as it is just then; a finding may be a change that is being made. \
            Nothing can be mounted during a check. The exit status is the sum of: 1 damage was repaired; 4 damage is left; 8 the check \
            could not be done; 16 the command line is wrong. It is 0 if there is no damage.",
};
