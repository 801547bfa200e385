//! The options of `overlayfs-fuse run` as people read them.

use overlayfs::usage::{Explained, Group, option};

/// The options of `run`.
pub const OPTIONS: Group = Group {
    title: "Options of run",
    options: &[
        Explained {
            form: "--lower DIR",
            brief: "Overlay the directory DIR, at its place. The option may come more than once. Without it the \
                    whole system is overlaid.",
            more: "With other directories than `/`, the command can only read the rest of the system. It has a \
                   `/dev` of its own in each case.",
        },
        Explained {
            form: "--upper DIR",
            brief: "Put the changes into DIR. If an earlier run made it, go on with its changes.",
            more: "Without this option a new directory is made in `$XDG_CACHE_HOME/overlayfs-fuse`, which is \
                   `~/.cache/overlayfs-fuse` if the variable is not set.",
        },
        Explained {
            form: "--tmp",
            brief: "Put the changes into a new directory in `$TMPDIR`, or in `/tmp`.",
            more: "That is often a tmpfs: fast, but lost at the next start of the system.",
        },
        Explained {
            form: "--bind BIND",
            brief: "Show the object SRC outside at DST, as it is. BIND is `SRC[:DST][:ro]`. The command may change the \
                    object, but not with `:ro`.",
            more: "DST must exist, and is SRC without it. Sockets and devices work only so. A colon in a path needs a \
                   backslash before it.",
        },
        option("--net, --no-net", "With `--no-net` the command has only a loopback interface. `--net` is the default."),
        Explained {
            form: "--root",
            brief: "Show the command its user as root, and all files as those of root.",
            more: "Programs that demand root run then. The user has no other rights than without this option.",
        },
        option("--keep", "Keep the changes, and say where they are."),
        option("--discard", "Throw the changes away."),
        Explained {
            form: "--commit",
            brief: "Make the changes in the system, with the rights of the user.",
            more: "What the user may not change outside is named, and stays in the directory of the changes.",
        },
        Explained {
            form: "--ask",
            brief: "Ask at the terminal what to do with the changes. This is the default. Without a terminal they are \
                    kept.",
            more: "",
        },
    ],
};
