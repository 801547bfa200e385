# Completion of overlayfs-fuse. scripts/pages writes this file.

set -g __overlayfs_fuse_list \
    lowerdir=\t'The directories that are only read' \
    lowerdir+=\t'One more of them, below those before it' \
    upperdir=\t'The directory that takes every change' \
    workdir=\t'A directory for the overlay alone, outside the upper directory and on its filesystem' \
    format=\t'How a new upper directory is written: as an OCI image layer, the default, or as the kernel\'s overlayfs writes it' \
    ro\t'ro: nothing can be changed, and the upper directory is read like a lower one' \
    rw\t'ro: nothing can be changed, and the upper directory is read like a lower one' \
    volatile\t'Nothing is synced to the disk before the unmount, also if a program asks for it' \
    fsync=\t'0 is another name for volatile' \
    reuse_volatile\t'Use the upper directory also if it has the mark of a crash, and remove the mark' \
    whole_copies\t'A file of a lower directory is copied whole before its first change' \
    userxattr\t'The layers are trusted: redirects and marks of metadata in them count, whoever may have made them' \
    redirect_dir=\t'With off, a rename of a directory that lower directories have fails with EXDEV; mv then copies it' \
    allow_other\t'Other users may use the mount' \
    default_permissions\t'The kernel checks access by owner and mode' \
    uidmapping=\t'N user (group) ids of the layers from A on are shown as the ids from B on, all others as 65534' \
    gidmapping=\t'N user (group) ids of the layers from A on are shown as the ids from B on, all others as 65534' \
    squash_to_root\t'Everything is shown as belonging to user 0 and group 0' \
    squash_to_uid=\t'Everything is shown as belonging to this user, or to this group' \
    squash_to_gid=\t'Everything is shown as belonging to this user, or to this group' \
    static_nlink\t'Directories are shown with one link' \
    noacl\t'There are no POSIX ACLs' \
    timeout=\t'How long the kernel believes what it is told of names and attributes' \
    max_threads=\t'How many requests are answered at once: two at least' \
    threaded=\t'0 is max_threads=1, 1 the default' \
    writeback=\t'Whether the kernel holds back what is written to files, to write it in larger pieces' \
    log=\t'Append messages to this file' \
    debug\t'As --debug' \
    fsname=\t'The source in /proc/mounts, as NAME on the command line' \
    remount\t'Change ro, rw and the flags below of what is mounted at MOUNTPOINT; all else stays as it is' \
    nosuid\t'Of the options below, those about access times change nothing, since reading leaves access times alone' \
    suid\t'Of the options below, those about access times change nothing, since reading leaves access times alone' \
    nodev\t'Of the options below, those about access times change nothing, since reading leaves access times alone' \
    dev\t'Of the options below, those about access times change nothing, since reading leaves access times alone' \
    noexec\t'Of the options below, those about access times change nothing, since reading leaves access times alone' \
    exec\t'Of the options below, those about access times change nothing, since reading leaves access times alone' \
    noatime\t'Of the options below, those about access times change nothing, since reading leaves access times alone' \
    atime\t'Of the options below, those about access times change nothing, since reading leaves access times alone' \
    nodiratime\t'Of the options below, those about access times change nothing, since reading leaves access times alone' \
    diratime\t'Of the options below, those about access times change nothing, since reading leaves access times alone' \
    relatime\t'Of the options below, those about access times change nothing, since reading leaves access times alone' \
    norelatime\t'Of the options below, those about access times change nothing, since reading leaves access times alone' \
    strictatime\t'Of the options below, those about access times change nothing, since reading leaves access times alone' \
    nostrictatime\t'Of the options below, those about access times change nothing, since reading leaves access times alone' \
    lazytime\t'Of the options below, those about access times change nothing, since reading leaves access times alone' \
    nolazytime\t'Of the options below, those about access times change nothing, since reading leaves access times alone' \
    nosymfollow\t'Of the options below, those about access times change nothing, since reading leaves access times alone' \
    symfollow\t'Of the options below, those about access times change nothing, since reading leaves access times alone' \
    sync\t'Of the options below, those about access times change nothing, since reading leaves access times alone' \
    async\t'Of the options below, those about access times change nothing, since reading leaves access times alone' \
    dirsync\t'Of the options below, those about access times change nothing, since reading leaves access times alone' \
    auto\t'For programs that read fstab(5), whatever the value:' \
    noauto\t'For programs that read fstab(5), whatever the value:' \
    user\t'For programs that read fstab(5), whatever the value:' \
    nouser\t'For programs that read fstab(5), whatever the value:' \
    users\t'For programs that read fstab(5), whatever the value:' \
    owner\t'For programs that read fstab(5), whatever the value:' \
    group\t'For programs that read fstab(5), whatever the value:' \
    nofail\t'For programs that read fstab(5), whatever the value:' \
    defaults\t'For programs that read fstab(5), whatever the value:' \
    comment\t'For programs that read fstab(5), whatever the value:' \
    _netdev\t'For programs that read fstab(5), whatever the value:' \
    helper\t'For programs that read fstab(5), whatever the value:' \
    uhelper\t'For programs that read fstab(5), whatever the value:' \
    private\t'For programs that read fstab(5), whatever the value:' \
    user_id\t'Files have the security labels that the layers give them, or that of the filesystem type; the labels of the last four options below are not passed on' \
    group_id\t'Files have the security labels that the layers give them, or that of the filesystem type; the labels of the last four options below are not passed on' \
    silent\t'Files have the security labels that the layers give them, or that of the filesystem type; the labels of the last four options below are not passed on' \
    loud\t'Files have the security labels that the layers give them, or that of the filesystem type; the labels of the last four options below are not passed on' \
    nomand\t'Files have the security labels that the layers give them, or that of the filesystem type; the labels of the last four options below are not passed on' \
    iversion\t'Files have the security labels that the layers give them, or that of the filesystem type; the labels of the last four options below are not passed on' \
    noiversion\t'Files have the security labels that the layers give them, or that of the filesystem type; the labels of the last four options below are not passed on' \
    context\t'Files have the security labels that the layers give them, or that of the filesystem type; the labels of the last four options below are not passed on' \
    fscontext\t'Files have the security labels that the layers give them, or that of the filesystem type; the labels of the last four options below are not passed on' \
    defcontext\t'Files have the security labels that the layers give them, or that of the filesystem type; the labels of the last four options below are not passed on' \
    rootcontext\t'Files have the security labels that the layers give them, or that of the filesystem type; the labels of the last four options below are not passed on' \
    clone_fd\t'Of fuse-overlayfs and other FUSE filesystems, whatever the value:' \
    max_idle_threads\t'Of fuse-overlayfs and other FUSE filesystems, whatever the value:' \
    kernel_cache\t'Of fuse-overlayfs and other FUSE filesystems, whatever the value:' \
    big_writes\t'Of fuse-overlayfs and other FUSE filesystems, whatever the value:' \
    nonempty\t'Of fuse-overlayfs and other FUSE filesystems, whatever the value:' \
    splice_read\t'Of fuse-overlayfs and other FUSE filesystems, whatever the value:' \
    splice_write\t'Of fuse-overlayfs and other FUSE filesystems, whatever the value:' \
    splice_move\t'Of fuse-overlayfs and other FUSE filesystems, whatever the value:' \
    max_write\t'Of fuse-overlayfs and other FUSE filesystems, whatever the value:' \
    fast_ino\t'Of fuse-overlayfs and other FUSE filesystems, whatever the value:' \
    fast_ino_check\t'Of fuse-overlayfs and other FUSE filesystems, whatever the value:' \
    door=\t'Requests are calls of the overlay\'s engine' \
    xino=\t'Inode numbers are unique and stay the same, as with on' \
    index=\t'Hard links are kept without it' \
    nfs_export=\t'The tree cannot be exported by NFS' \
    uuid=\t'The values of the kernel\'s overlayfs; none has an effect' \
    metacopy=\t'No copy has metadata alone once the tree is unmounted' \
    noxattrs=\t'There are extended attributes' \
    xattr_permissions=\t'Owners that cannot be given are recorded, and only these'

complete -c overlayfs-fuse -s o -x -a '(__fish_append , $__overlayfs_fuse_list)' -d 'Mount options, separated by commas'
complete -c overlayfs-fuse -s f -d 'Stay in the foreground'
complete -c overlayfs-fuse -s v -d 'Log what matters: to standard error, or in the background to syslog'
complete -c overlayfs-fuse -l verbose -d 'Log what matters: to standard error, or in the background to syslog'
complete -c overlayfs-fuse -s d -d 'Log every request too, and stay in the foreground'
complete -c overlayfs-fuse -l debug -d 'Log every request too, and stay in the foreground'
complete -c overlayfs-fuse -s s -d 'Answer as few requests at once as possible: as max_threads=1'
complete -c overlayfs-fuse -s h -d 'Print a summary of the options'
complete -c overlayfs-fuse -l help -d 'Print a summary of the options'
complete -c overlayfs-fuse -s V -d 'Print the version'
complete -c overlayfs-fuse -l version -d 'Print the version'
