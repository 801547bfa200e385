# Completion of overlayfs. scripts/pages writes this file.

set -g __overlayfs_list \
    lowerdir=\t'As --lower for each of the directories' \
    lowerdir+=\t'As --lower' \
    upperdir=\t'As --upper' \
    workdir=\t'As --work' \
    snapshots=\t'As --snapshots' \
    ro\t'ro is --read-only, rw is the opposite' \
    rw\t'ro is --read-only, rw is the opposite' \
    volatile\t'As --volatile' \
    reuse_volatile\t'As --reuse-volatile' \
    whole_copies\t'As --whole-copies' \
    userxattr\t'As --trust-layers' \
    redirect_dir=\t'off and follow are --no-redirects' \
    on_exit=\t'As --on-exit'

complete -c overlayfs -n __fish_use_subcommand -x -a status -d 'Tell what an overlay is, and what the program that serves it does'
complete -c overlayfs -n __fish_use_subcommand -x -a sync -d 'Complete partial copies of an overlay, and sync all of its changes to the disk'
complete -c overlayfs -n __fish_use_subcommand -x -a snapshot -d 'Freeze the upper directory of an overlay, and go on in a new one'
complete -c overlayfs -n __fish_use_subcommand -x -a rollback -d 'Leave the changes since the last snapshot aside, and show the snapshot again'
complete -c overlayfs -n __fish_use_subcommand -x -a snapshots -d 'List the snapshots of an overlay: number, time and name'
complete -c overlayfs -n __fish_use_subcommand -x -a run -d 'Run a program with an overlay as its `/`'
complete -c overlayfs -l lower -x -a '(__fish_complete_directories)' -d 'A directory that is only read'
complete -c overlayfs -l upper -x -a '(__fish_complete_directories)' -d 'The directory that takes every change'
complete -c overlayfs -l work -x -a '(__fish_complete_directories)' -d 'A directory for the overlay alone, outside the upper directory and on its filesystem'
complete -c overlayfs -l snapshots -x -a '(__fish_complete_directories)' -d 'A directory on the filesystem of the upper directory, for snapshots'
complete -c overlayfs -l read-only -d 'Every change fails with EROFS'
complete -c overlayfs -l volatile -d 'The overlay syncs nothing to the disk before its end, even if a program asks for it'
complete -c overlayfs -l reuse-volatile -d 'Use the upper directory even if it has the mark of a crash, and remove the mark'
complete -c overlayfs -l whole-copies -d 'Copy a lower file whole before its first change'
complete -c overlayfs -l trust-layers -d 'Trust redirects and marks of metadata in the layers, whatever their owner'
complete -c overlayfs -l no-redirects -d 'A rename of a lower directory fails with EXDEV'
complete -c overlayfs -l on-exit -x -d 'What happens to the changes when SIGTERM or SIGINT ends the daemon'
complete -c overlayfs -l replace -d 'Take the name even if a dead daemon has left it behind'
complete -c overlayfs -l detach -d 'Go into the background'
complete -c overlayfs -l hand-to-init -d 'Hand the scheme to init, which registers the name'
complete -c overlayfs -l unprotected-hardlinks -d 'A user that may write a directory may link any visible file into it'
complete -c overlayfs -s v -d 'Log every request'
complete -c overlayfs -l verbose -d 'Log every request'
complete -c overlayfs -s h -d 'Print a summary of the options'
complete -c overlayfs -l help -d 'Print a summary of the options'
complete -c overlayfs -s V -d 'Print the version'
complete -c overlayfs -l version -d 'Print the version'
complete -c overlayfs -s o -x -a '(__fish_append , $__overlayfs_list)' -d 'The layers as a list with commas, as below'
complete -c overlayfs -l scheme -x -d 'Let the program reach this scheme of the system too, such as ram'
complete -c overlayfs -l net -d 'With --net the program reaches the network: icmp, tcp and udp'
complete -c overlayfs -l no-net -d 'With --net the program reaches the network: icmp, tcp and udp'
complete -c overlayfs -l keep -d 'Keep the changes, and say where they are'
complete -c overlayfs -l discard -d 'Throw the changes away'
complete -c overlayfs -l commit -d 'Make the changes in the topmost lower directory'
complete -c overlayfs -l ask -d 'Ask at the terminal what to do with the changes'
complete -c overlayfs -l json -d 'Print an object for programs'
complete -c overlayfs -l metrics -d 'Print numbers in the text format of Prometheus'
complete -c overlayfs -l watch -d 'Print again every second, until the overlay ends'
complete -c overlayfs -l name -x -d 'The name of the snapshot'
