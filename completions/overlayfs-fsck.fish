# Completion of overlayfs-fsck. scripts/pages writes this file.

set -g __overlayfs_fsck_list \
    lowerdir=\t'As --lower for each of the directories' \
    lowerdir+=\t'As --lower' \
    upperdir=\t'As --upper' \
    workdir=\t'As --work' \
    ro\t'Accepted without effect' \
    rw\t'Accepted without effect' \
    volatile\t'Accepted without effect' \
    reuse_volatile\t'Accepted without effect' \
    whole_copies\t'Accepted without effect' \
    userxattr\t'Accepted without effect' \
    redirect_dir=\t'Accepted without effect' \
    on_exit=\t'Accepted without effect'

complete -c overlayfs-fsck -l lower -x -a '(__fish_complete_directories)' -d 'A directory that is only read'
complete -c overlayfs-fsck -l upper -x -a '(__fish_complete_directories)' -d 'The directory to check'
complete -c overlayfs-fsck -l work -x -a '(__fish_complete_directories)' -d 'The work directory'
complete -c overlayfs-fsck -s n -d 'Print findings and write nothing'
complete -c overlayfs-fsck -s y -d 'Repair each finding that can be repaired'
complete -c overlayfs-fsck -s h -d 'Print a summary of the options'
complete -c overlayfs-fsck -l help -d 'Print a summary of the options'
complete -c overlayfs-fsck -s V -d 'Print the version'
complete -c overlayfs-fsck -l version -d 'Print the version'
complete -c overlayfs-fsck -s o -x -a '(__fish_append , $__overlayfs_fsck_list)' -d 'The same as a list with commas, as for the mount'
