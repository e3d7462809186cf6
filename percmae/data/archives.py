"""The ILSVRC archives' names. (A file of its own: who only names them need not read them.)"""

ARCHIVES = {
    "train": "ILSVRC2012_img_train.tar",
    "val": "ILSVRC2012_img_val.tar",
    "devkit": "ILSVRC2012_devkit_t12.tar.gz",
}
"""Training images, validation images and development kit, as they come; by the option of
``percmae ingest``."""
