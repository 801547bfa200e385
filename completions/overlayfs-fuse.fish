# Completion of overlayfs-fuse. scripts/pages writes this file.

set -g __overlayfs_fuse_list \
    lowerdir=\t'The directories that are only read' \
    lowerdir+=\t'One more lower directory, below the earlier ones' \
    upperdir=\t'The directory that takes every change' \
    workdir=\t'A directory for the overlay alone, outside the upper directory and on its filesystem' \
    snapshots=\t'A directory on the filesystem of the upper directory, for snapshots' \
    format=\t'The format of a new upper directory: an OCI image layer, which is the default, or that of the kernel\'s overlayfs' \
    ro\t'With ro every change fails with EROFS, and the upper directory is read like a lower one' \
    rw\t'With ro every change fails with EROFS, and the upper directory is read like a lower one' \
    volatile\t'The overlay syncs nothing to the disk before the unmount, even if a program asks for it' \
    fsync=\t'0 is another name for volatile' \
    reuse_volatile\t'Use the upper directory even if it has the mark of a crash, and remove the mark' \
    whole_copies\t'Copy a lower file whole before its first change' \
    userxattr\t'Trust redirects and marks of metadata in the layers, whatever their owner' \
    on_exit=\t'What happens to the changes at a clean unmount' \
    redirect_dir=\t'With off a rename of a lower directory fails with EXDEV' \
    allow_other\t'Other users may use the mount' \
    default_permissions\t'The kernel checks access by owner and mode' \
    uidmapping=\t'N user (group) ids of the layers from A on show as the ids from B on' \
    gidmapping=\t'N user (group) ids of the layers from A on show as the ids from B on' \
    squash_to_root\t'Every object shows as that of user 0 and group 0' \
    squash_to_uid=\t'Every object shows as that of this user, or of this group' \
    squash_to_gid=\t'Every object shows as that of this user, or of this group' \
    static_nlink\t'Directories show one link' \
    noacl\t'There are no POSIX ACLs' \
    timeout=\t'How long the kernel caches names and attributes' \
    max_threads=\t'How many requests the mount serves at once, at least two' \
    threaded=\t'0 is max_threads=1; 1 is the default' \
    io_uring=\t'Whether requests come over io_uring, which makes each of them cheaper' \
    comeback\t'The mount goes on if its process is killed: another one takes its place, and programs see a pause' \
    writeback=\t'With 1 the kernel holds back data that is written to files, and writes it in larger pieces' \
    passthrough\t'The kernel reads large files of a read-only mount from their layers itself' \
    log=\t'Send messages to the end of a file, to syslog, to the journal, or to standard error' \
    debug\t'As --debug' \
    fsname=\t'The source in /proc/mounts, like NAME on the command line' \
    remount\t'Change ro, rw and the flags below of the mount at MOUNTPOINT' \
    nosuid\t'Flags of the mount, as mount(8) explains them' \
    suid\t'Flags of the mount, as mount(8) explains them' \
    nodev\t'Flags of the mount, as mount(8) explains them' \
    dev\t'Flags of the mount, as mount(8) explains them' \
    noexec\t'Flags of the mount, as mount(8) explains them' \
    exec\t'Flags of the mount, as mount(8) explains them' \
    noatime\t'Flags of the mount, as mount(8) explains them' \
    atime\t'Flags of the mount, as mount(8) explains them' \
    nodiratime\t'Flags of the mount, as mount(8) explains them' \
    diratime\t'Flags of the mount, as mount(8) explains them' \
    relatime\t'Flags of the mount, as mount(8) explains them' \
    norelatime\t'Flags of the mount, as mount(8) explains them' \
    strictatime\t'Flags of the mount, as mount(8) explains them' \
    nostrictatime\t'Flags of the mount, as mount(8) explains them' \
    lazytime\t'Flags of the mount, as mount(8) explains them' \
    nolazytime\t'Flags of the mount, as mount(8) explains them' \
    nosymfollow\t'Flags of the mount, as mount(8) explains them' \
    symfollow\t'Flags of the mount, as mount(8) explains them' \
    sync\t'Flags of the mount, as mount(8) explains them' \
    async\t'Flags of the mount, as mount(8) explains them' \
    dirsync\t'Flags of the mount, as mount(8) explains them' \
    auto\t'Accepted for programs that read fstab(5), with any value:' \
    noauto\t'Accepted for programs that read fstab(5), with any value:' \
    user\t'Accepted for programs that read fstab(5), with any value:' \
    nouser\t'Accepted for programs that read fstab(5), with any value:' \
    users\t'Accepted for programs that read fstab(5), with any value:' \
    owner\t'Accepted for programs that read fstab(5), with any value:' \
    group\t'Accepted for programs that read fstab(5), with any value:' \
    nofail\t'Accepted for programs that read fstab(5), with any value:' \
    defaults\t'Accepted for programs that read fstab(5), with any value:' \
    comment\t'Accepted for programs that read fstab(5), with any value:' \
    _netdev\t'Accepted for programs that read fstab(5), with any value:' \
    helper\t'Accepted for programs that read fstab(5), with any value:' \
    uhelper\t'Accepted for programs that read fstab(5), with any value:' \
    private\t'Accepted for programs that read fstab(5), with any value:' \
    user_id\t'Accepted for the kernel, which does not need them here' \
    group_id\t'Accepted for the kernel, which does not need them here' \
    silent\t'Accepted for the kernel, which does not need them here' \
    loud\t'Accepted for the kernel, which does not need them here' \
    nomand\t'Accepted for the kernel, which does not need them here' \
    iversion\t'Accepted for the kernel, which does not need them here' \
    noiversion\t'Accepted for the kernel, which does not need them here' \
    context\t'Accepted for the kernel, which does not need them here' \
    fscontext\t'Accepted for the kernel, which does not need them here' \
    defcontext\t'Accepted for the kernel, which does not need them here' \
    rootcontext\t'Accepted for the kernel, which does not need them here' \
    clone_fd\t'Accepted for users of fuse-overlayfs and other FUSE filesystems, with any value:' \
    max_idle_threads\t'Accepted for users of fuse-overlayfs and other FUSE filesystems, with any value:' \
    kernel_cache\t'Accepted for users of fuse-overlayfs and other FUSE filesystems, with any value:' \
    big_writes\t'Accepted for users of fuse-overlayfs and other FUSE filesystems, with any value:' \
    nonempty\t'Accepted for users of fuse-overlayfs and other FUSE filesystems, with any value:' \
    splice_read\t'Accepted for users of fuse-overlayfs and other FUSE filesystems, with any value:' \
    splice_write\t'Accepted for users of fuse-overlayfs and other FUSE filesystems, with any value:' \
    splice_move\t'Accepted for users of fuse-overlayfs and other FUSE filesystems, with any value:' \
    max_write\t'Accepted for users of fuse-overlayfs and other FUSE filesystems, with any value:' \
    fast_ino\t'Accepted for users of fuse-overlayfs and other FUSE filesystems, with any value:' \
    fast_ino_check\t'Accepted for users of fuse-overlayfs and other FUSE filesystems, with any value:' \
    door=\t'Requests call the overlay\'s engine directly' \
    xino=\t'Inode numbers are unique and stay the same, as with on' \
    index=\t'Hard links stay without it' \
    nfs_export=\t'NFS can export the tree: file handles stay valid over mounts, as with on' \
    uuid=\t'The values of the kernel\'s overlayfs' \
    metacopy=\t'After the unmount no copy has only metadata' \
    noxattrs=\t'There are extended attributes' \
    xattr_permissions=\t'The mount records owners that it cannot set, and only these'

complete -c overlayfs-fuse -n __fish_use_subcommand -x -a ls -d 'List all overlays of the system that the user may see'
complete -c overlayfs-fuse -n __fish_use_subcommand -x -a status -d 'Tell what the program that serves a mount does'
complete -c overlayfs-fuse -n __fish_use_subcommand -x -a sync -d 'Complete partial copies of a mount, and sync all of its changes to the disk'
complete -c overlayfs-fuse -n __fish_use_subcommand -x -a restart -d 'Let the installed version of the program go on with a mount, while programs use it'
complete -c overlayfs-fuse -n __fish_use_subcommand -x -a snapshot -d 'Freeze the upper directory of a mount, and go on in a new one'
complete -c overlayfs-fuse -n __fish_use_subcommand -x -a rollback -d 'Leave the changes since the last snapshot aside, and show the snapshot again'
complete -c overlayfs-fuse -n __fish_use_subcommand -x -a snapshots -d 'List the snapshots of a mount: number, time and name'
complete -c overlayfs-fuse -n __fish_use_subcommand -x -a run -d 'Run a program in an overlay of the system, without root'
complete -c overlayfs-fuse -s o -x -a '(__fish_append , $__overlayfs_fuse_list)' -d 'Mount options, separated by commas'
complete -c overlayfs-fuse -s f -d 'Stay in the foreground'
complete -c overlayfs-fuse -s v -d 'Log important events: to standard error, or in the background to syslog'
complete -c overlayfs-fuse -l verbose -d 'Log important events: to standard error, or in the background to syslog'
complete -c overlayfs-fuse -s d -d 'Log every request too, and stay in the foreground'
complete -c overlayfs-fuse -l debug -d 'Log every request too, and stay in the foreground'
complete -c overlayfs-fuse -l on-exit -x -d 'The same as the mount option on_exit'
complete -c overlayfs-fuse -s s -d 'Serve as few requests at once as possible, as max_threads=1 does'
complete -c overlayfs-fuse -s h -d 'Print a summary of the options'
complete -c overlayfs-fuse -l help -d 'Print a summary of the options'
complete -c overlayfs-fuse -s V -d 'Print the version'
complete -c overlayfs-fuse -l version -d 'Print the version'
complete -c overlayfs-fuse -l lower -x -a '(__fish_complete_directories)' -d 'Overlay the directory DIR, at its place'
complete -c overlayfs-fuse -l upper -x -a '(__fish_complete_directories)' -d 'Put the changes into DIR'
complete -c overlayfs-fuse -l tmp -d 'Put the changes into a new directory in $TMPDIR, or in /tmp'
complete -c overlayfs-fuse -l bind -x -d 'Show the object SRC outside at DST, as it is'
complete -c overlayfs-fuse -l net -d 'With --no-net the command has only a loopback interface'
complete -c overlayfs-fuse -l no-net -d 'With --no-net the command has only a loopback interface'
complete -c overlayfs-fuse -l root -d 'Show the command its user as root, and all files as those of root'
complete -c overlayfs-fuse -l keep -d 'Keep the changes, and say where they are'
complete -c overlayfs-fuse -l discard -d 'Throw the changes away'
complete -c overlayfs-fuse -l commit -d 'Make the changes in the system, with the rights of the user'
complete -c overlayfs-fuse -l ask -d 'Ask at the terminal what to do with the changes'
complete -c overlayfs-fuse -l json -d 'Print each overlay as a JSON object on a line'
complete -c overlayfs-fuse -l metrics -d 'Print the numbers in the text format of Prometheus'
complete -c overlayfs-fuse -l watch -d 'Print again every second, until the mount ends'
complete -c overlayfs-fuse -l name -x -d 'Name the snapshot'
