# Completion of overlayfs-layer. scripts/pages writes this file.

set -g __overlayfs_layer_list \
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

complete -c overlayfs-layer -n __fish_use_subcommand -x -a diff -d 'List what the upper directory changes'
complete -c overlayfs-layer -n __fish_use_subcommand -x -a commit -d 'Merge the upper directory into the topmost lower one'
complete -c overlayfs-layer -n __fish_use_subcommand -x -a discard -d 'Throw away all changes in the upper directory'
complete -c overlayfs-layer -n __fish_use_subcommand -x -a flatten -d 'Make one directory of all layers'
complete -c overlayfs-layer -n __fish_use_subcommand -x -a vacuum -d 'Remove from the upper directory what the lower ones show too, and marks that hide nothing'
complete -c overlayfs-layer -n __fish_use_subcommand -x -a export -d 'Write the changes as a layer of an OCI image'
complete -c overlayfs-layer -n __fish_use_subcommand -x -a import -d 'Make lower directories of an archive or of an image'
complete -c overlayfs-layer -n __fish_use_subcommand -x -a info -d 'Tell what the upper directory is, what it was stacked on, and what it contains'
complete -c overlayfs-layer -n __fish_use_subcommand -x -a convert -d 'Change the format of the upper directory'
complete -c overlayfs-layer -l lower -x -a '(__fish_complete_directories)' -d 'A directory that is only read'
complete -c overlayfs-layer -l upper -x -a '(__fish_complete_directories)' -d 'The upper directory'
complete -c overlayfs-layer -l work -x -a '(__fish_complete_directories)' -d 'The work directory'
complete -c overlayfs-layer -s q -d 'Show no progress'
complete -c overlayfs-layer -l quiet -d 'Show no progress'
complete -c overlayfs-layer -s h -d 'Print a summary of the options'
complete -c overlayfs-layer -l help -d 'Print a summary of the options'
complete -c overlayfs-layer -s V -d 'Print the version'
complete -c overlayfs-layer -l version -d 'Print the version'
complete -c overlayfs-layer -s o -x -a '(__fish_append , $__overlayfs_layer_list)' -d 'The layers as a list with commas, as for the mount'
complete -c overlayfs-layer -l from -x -a '(__fish_complete_directories)' -d 'Compare with the directory DIR instead of the lower ones'
complete -c overlayfs-layer -l content -d 'Also print the lines that differ, as diff -u does'
complete -c overlayfs-layer -l stat -d 'Print only the sums of objects and bytes'
complete -c overlayfs-layer -l json -d 'Print each change as a JSON object on a line'
complete -c overlayfs-layer -s 0 -d 'Print raw paths, and a zero byte behind each field'
complete -c overlayfs-layer -l dry-run -d 'List the changes, and make none'
complete -c overlayfs-layer -l resume -d 'Only go on with a commit that was interrupted'
complete -c overlayfs-layer -l include -x -d 'Commit only changes whose path in the mount matches, and what they need'
complete -c overlayfs-layer -l exclude -x -d 'Leave changes whose path in the mount matches in the upper directory'
complete -c overlayfs-layer -l into -x -a '(__fish_complete_directories)' -d 'Leave the layers as they are, and make a merged copy of the upper and the topmost lower one'
complete -c overlayfs-layer -l atomic -d 'Make the merged copy beside the lower directory, and exchange the two in one step'
complete -c overlayfs-layer -l keep-old -d 'With --atomic: keep the former lower directory, with .old behind its name'
complete -c overlayfs-layer -l ignore-times -d 'Remove objects of which only the times differ, too'
complete -c overlayfs-layer -l format -x -a 'tar tar.gz tar.zst' -d 'The form of the archive'
complete -c overlayfs-layer -l oci-layout -x -d 'Add an image to an OCI image layout, which is made if it is missing'
complete -c overlayfs-layer -l base -x -d 'Put one layer with the changes on top of the layers of this image'
complete -c overlayfs-layer -l no-devices -d 'Leave devices out'
complete -c overlayfs-layer -l owner -x -d 'Give all objects this owner, and no set-id bits'
complete -c overlayfs-layer -l rootless -d 'Leave out what only root may set: devices, and attributes such as capabilities'
complete -c overlayfs-layer -l limit -x -d 'Refuse a layer that has more bytes, packed or unpacked, with all holes'
complete -c overlayfs-layer -l to -x -a 'oci kernel' -d 'The new format: that of OCI image layers, or that of the kernel\'s overlayfs'
complete -c overlayfs-layer -l deref -d 'Resolve redirects: copy everything in renamed directories to the upper directory'
