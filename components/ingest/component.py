"""Images to a dataset of shards in the store."""

from kfp import dsl
from kfp.dsl import Dataset, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(
    images: str,
    labels: str,
    archive_train: str,
    archive_val: str,
    archive_devkit: str,
    store: str,
    name: str,
    dataset: Output[Dataset],
) -> None:
    """Turn images, or ILSVRC archives, into a dataset of shards; of one that is there, what is new.

    Args:
        images: Folder or prefix, table, archives or shards; s3:// URI or path. Empty: the archives.
        labels: Of images: auto, folders or none.
        archive_train: Tar of class tars (ILSVRC2012_img_train.tar), s3:// URI or path.
        archive_val: Tar of the validation images, which become the test set.
        archive_devkit: The devkit's tar.gz, with classes and labels.
        store: URI below which datasets, runs and reports are kept.
        name: Name of the dataset; it lies at <store>/datasets/<name>.
        dataset: The dataset's manifest; its metadata has the URI, the digest and the split sizes.
    """
    from percmae.stages import steps

    steps.ingest(images, labels, (archive_train, archive_val, archive_devkit), store, name, dataset)
