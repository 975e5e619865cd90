"""An erofs file system, written from the archives of an image, without mkfs.erofs and without root.

    tree.py      FileTree: what the archives make, in memory, but for the content of files
    names.py     directories and extended attributes as bytes                             PURE
    inodes.py    inodes and the superblock as bytes                                       PURE
    image.py     ErofsImage: where everything lies, and its bytes

FileTree has the methods of the ext4 that archives are applied to (build/ext4/native), so that
build/ext4/apply does both, by the same rules. Not compressed, since layers are; files begin at
blocks of 4096 bytes. The same tree gives the same bytes, whatever archives it came from: no clock
and no random numbers get into it, and everything is in the order of the names.

Format: Documentation/filesystems/erofs.rst of Linux. Nothing in it that Linux 5.4 cannot read.
"""
