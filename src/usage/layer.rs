//! The tools for upper layers.

use super::{Explained, Group, ITEMS, Program, option};

/// `overlayfs-layer`.
pub const PROGRAM: Program = Program {
    name: "overlayfs-layer",
    about: "lists, keeps, moves and removes the changes in the upper directory of an overlay",
    forms: &[
        "COMMAND --lower DIR [--lower DIR ...] --upper DIR [--work DIR] [OPTION ...]",
        "export LAYERS [--format FORMAT] FILE|-",
        "export LAYERS --oci-layout LAYOUT[:TAG] [--base LAYOUT[:TAG]]",
        "import ARCHIVE[:TAG]|LAYOUT[:TAG] DIR [OPTION ...]",
    ],
    before: "Name the directories of the mount, in the same order. `import` takes the file of a layer (.tar, .tar.gz \
             or .tar.zst), `-` for standard input, an OCI image layout, or the file of an image that `podman save` or \
             `docker save` wrote. It makes a directory in DIR for each layer, \
             named after its digest, and prints them, the topmost first, with the option lowerdir= for a mount. What \
             is there already is not imported again.",
    commands: &[
        ("diff", "List what the upper directory changes."),
        ("commit", "Merge the upper directory into the topmost lower one."),
        ("discard", "Throw away all changes in the upper directory."),
        ("flatten", "Make one directory of all layers."),
        ("vacuum", "Remove from the upper directory what the lower ones show too, and marks that hide nothing."),
        ("export", "Write the changes as a layer of an OCI image."),
        ("import", "Make lower directories of an archive or of an image."),
        ("info", "Tell what the upper directory is, what it was stacked on, and what it contains."),
        ("convert", "Change the format of the upper directory."),
    ],
    groups: &[LAYERS, DIFF, COMMIT, FLATTEN, VACUUM, EXPORT, IMPORT, INFO, CONVERT, ITEMS],
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
        option(
            "--include GLOB",
            "Commit only changes whose path in the mount matches, and what they need. The option may come more than \
             once.",
        ),
        option(
            "--exclude GLOB",
            "Leave changes whose path in the mount matches in the upper directory. The option may come more than once.",
        ),
        option(
            "--into DIR",
            "Leave the layers as they are, and make a merged copy of the upper and the topmost lower one.",
        ),
        option(
            "--atomic",
            "Make the merged copy beside the lower directory, and exchange the two in one step. The copy has links to \
             the files of both directories.",
        ),
        option("--keep-old", "With `--atomic`: keep the former lower directory, with `.old` behind its name."),
    ],
};

const FLATTEN: Group = Group {
    title: "Options of flatten",
    options: &[option("--into DIR", "The new directory. It may exist if it is empty. `--upper` may be left out.")],
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

const EXPORT: Group = Group {
    title: "Options of export",
    options: &[
        option(
            "--format tar|tar.gz|tar.zst",
            "The form of the archive. Without this option the name of the file tells it. An image gets tar.gz.",
        ),
        Explained {
            form: "--oci-layout LAYOUT[:TAG]",
            brief: "Add an image to an OCI image layout, which is made if it is missing. The tag `latest` is the \
                    default.",
            more: "Without `--base` the image has a layer for each lower directory, and one for the upper directory.",
        },
        option("--base LAYOUT[:TAG]", "Put one layer with the changes on top of the layers of this image."),
    ],
};

const IMPORT: Group = Group {
    title: "Options of import",
    options: &[
        option("--no-devices", "Leave devices out."),
        Explained {
            form: "--owner UID:GID",
            brief: "Give all objects this owner, and no set-id bits.",
            more: "Without this option each object gets the owner that the archive says. Where the user may not set \
                   it, it is recorded, and a mount of the same user shows it.",
        },
        option("--rootless", "Leave out what only root may set: devices, and attributes such as capabilities."),
        option(
            "--limit BYTES",
            "Refuse a layer that has more bytes, packed or unpacked, with all holes. K, M, G and T stand for powers \
             of 1024. Without this option the limit is the free space.",
        ),
    ],
};

const INFO: Group = Group { title: "Options of info", options: &[option("--json", "Print a JSON object.")] };

const CONVERT: Group = Group {
    title: "Options of convert",
    options: &[
        Explained {
            form: "--to oci|kernel",
            brief: "The new format: that of OCI image layers, or that of the kernel's overlayfs.",
            more: "`--work` must name a directory beside the upper one then, on the same filesystem. The upper \
                   directory uses it from then on. It must be no mount point.",
        },
        Explained {
            form: "--deref",
            brief: "Resolve redirects: copy everything in renamed directories to the upper directory.",
            more: "Programs that know no redirects, such as fuse-overlayfs, read the upper directory then.",
        },
    ],
};
