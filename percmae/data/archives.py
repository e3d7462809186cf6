"""The ILSVRC archives' names. (A file of its own: who only names them need not read them.)"""

ARCHIVES = {
    "train": "ILSVRC2012_img_train.tar",
    "val": "ILSVRC2012_img_val.tar",
    "devkit": "ILSVRC2012_devkit_t12.tar.gz",
}
"""Training images, validation images and development kit, as they come; by the option of
``percmae ingest``."""

PUBLISHED = {
    (ARCHIVES["train"], 147_897_477_120): "1d675b47d978889d74fa0da5fadfb00e",
    (ARCHIVES["val"], 6_744_924_160): "29b22e2961454d5413ddabcf34fc5622",
}
"""MD5 of the published archives, by their name and size in bytes."""
