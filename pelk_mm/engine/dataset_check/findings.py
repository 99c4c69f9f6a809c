"""What can be wrong with a data set: the kinds of findings, with their remedies."""

from dataclasses import dataclass
from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of finding.

    Attributes:
        level: ``error``, which stops a training or spoils it, or ``warning``.
        title: What is wrong, a phrase that follows a number of findings.
        remedy: What to do.
    """

    level: str
    title: str
    remedy: str


_AGAIN = 'copy or download the files again, or delete them with their annotations'

#: Every kind of finding by its name in the JSON report.
KINDS = {
    # ----------------------------------------------------- the data set as a whole
    'dataset': Kind('error', 'the data set cannot be opened', 'correct the config'),
    'classes': Kind(
        'error',
        'classes disagree',
        'set_num_classes of pelk_mm.engine sets all heads, metainfo=dict(classes=...) '
        'the data set; docs/own_dataset.md has both',
    ),
    'reader_died': Kind(
        'error',
        'the process that read the file died, of too little memory or a decoder that '
        'crashed',
        'look at the file on its own; save it again or remove it',
    ),
    # ------------------------------------------------------------------ image files
    'image_missing': Kind(
        'error', 'image does not exist', 'correct data_root, data_prefix or the list'
    ),
    'image_unreadable': Kind('error', 'image cannot be read', _AGAIN),
    'image_truncated': Kind(
        'error',
        'image is damaged; mm would train on what is left of it, without an error',
        _AGAIN,
    ),
    'channels': Kind(
        'error',
        'image with another number of channels than the backbone takes',
        "color_type='color' of LoadImageFromFile loads 3 channels of any file; "
        'in_channels of the backbone, and mean and std of data_preprocessor, take '
        'another number',
    ),
    'depth': Kind(
        'error',
        'image whose values do not survive loading as 8 bits',
        'scale the values to 0 to 255 and save the images with 8 bits',
    ),
    'sixteen_bits': Kind(
        'warning',
        'image of 16 bits per value, of which mm keeps the upper 8',
        'nothing, if they look right; else save them with 8 bits',
    ),
    'transparent': Kind(
        'warning',
        'image with transparency, which mm leaves out: what is under it is trained on',
        'nothing, if the colours under it are meaningful; else save them without alpha',
    ),
    'turned': Kind(
        'warning',
        'image that its EXIF data turns as it is loaded; annotations have to be of the '
        'turned image',
        'look at one; save the pixels turned (PIL.ImageOps.exif_transpose) to be sure',
    ),
    'smaller_than_crop': Kind(
        'warning',
        'image smaller than the crop',
        'what Resize does not enlarge is padded with ignored pixels; '
        'set_crop_size of pelk_mm.engine sets a smaller crop',
    ),
    'too_small': Kind(
        'error',
        'image that is too small for the backbone when it is tested',
        'model.data_preprocessor.test_cfg=dict(size_divisor=32), see "Small tiles" in '
        'docs/own_dataset.md',
    ),
    'long': Kind(
        'warning',
        'image more than eight times as long as wide',
        'Resize makes it narrow; cut it into tiles',
    ),
    'unread_files': Kind(
        'warning',
        'file in the folder of the images that the data set does not read',
        'set img_suffix or ann_file, or rename the files; suffixes are told apart by '
        'case, and a data set has one',
    ),
    'duplicate': Kind(
        'warning',
        'image that the split has twice',
        'remove all but one with their annotations',
    ),
    'leak': Kind(
        'warning',
        'image that another split has too',
        'keep it in one split: what is trained on says nothing when it is evaluated',
    ),
    # ------------------------------------------------------------------ label maps
    'labels_missing': Kind(
        'error',
        'label map does not exist',
        'correct data_prefix.seg_map_path or seg_map_suffix, or remove the image',
    ),
    'labels_unreadable': Kind('error', 'label map cannot be read', _AGAIN),
    'labels_form': Kind(
        'error',
        'label map that is not one channel of 8 bits',
        'save the number of the class per pixel as PNG with one channel (or a palette)',
    ),
    'labels_size': Kind(
        'error',
        'label map of another size than the image as it is loaded',
        'export the label maps again; where EXIF data turns the image, save its pixels '
        'turned (PIL.ImageOps.exif_transpose) or turn the label map',
    ),
    'labels_range': Kind(
        'error',
        'label map with labels that are no class',
        'if label 0 means unlabelled and classes begin at 1, '
        'dataset.reduce_zero_label=True; if the label means unlabelled, replace it by '
        '255; else name its class in metainfo and call set_num_classes',
    ),
    'labels_ignored': Kind(
        'warning',
        'label map whose pixels are all ignored',
        'nothing is learned from it: check the export, or remove the image',
    ),
    # ------------------------------------------------------------------ objects
    'annotation_file': Kind(
        'error',
        'annotation file that is not as COCO has it',
        'export it again',
    ),
    'annotation': Kind(
        'error',
        'annotation that mm cannot load',
        'correct it, or remove it and its image',
    ),
    'ids': Kind(
        'error',
        'id that is not unique',
        'number the entries anew: mm keeps one of them',
    ),
    'no_image': Kind(
        'error',
        'annotation of an image that the file does not list',
        'remove it or add the image',
    ),
    'category': Kind(
        'error',
        'object of a category that the file does not list; mmdet drops it silently',
        'add the category or correct category_id',
    ),
    'unused_category': Kind(
        'warning',
        'category that classes do not name; mmdet drops its objects silently',
        'add it to metainfo=dict(classes=...) and call set_num_classes, if it is meant',
    ),
    'box': Kind(
        'error',
        'box without area or outside of its image; mmdet drops it silently',
        'boxes are [left, top, width, height] in pixels; correct or remove them',
    ),
    'box_beyond': Kind(
        'warning',
        'box that goes beyond its image',
        'clip it; if there are many, check the size of the images in the file',
    ),
    'mask': Kind(
        'error',
        'mask that is missing or damaged',
        'export it again; a polygon has at least 3 points, runs of RLE (counts) add up '
        'to the pixels of the image; without any masks train boxes alone, see '
        'docs/own_dataset.md',
    ),
    'image_size': Kind(
        'error',
        'image of another size than the annotation file says',
        'correct width and height; where EXIF data turns the image, save its pixels '
        'turned (PIL.ImageOps.exif_transpose)',
    ),
    'crowd_key': Kind(
        'error',
        'annotation without iscrowd, which the evaluation reads',
        'add iscrowd=0',
    ),
    'no_objects': Kind(
        'warning',
        'image without objects',
        'filter_cfg=dict(filter_empty_gt=True), as ours, leaves it out in training',
    ),
    # ------------------------------------------------------------------ classes
    'never': Kind(
        'warning',
        'classes that never occur',
        'nothing can be learned of them, and they have no score: check the export, or '
        'take them out of classes',
    ),
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: Key of `KINDS`.
        where: The file, or the place in the config.
        detail: What is special about this one; may be empty.
    """

    kind: str
    where: str
    detail: str = ''

    @property
    def level(self) -> str:
        """``error`` or ``warning``."""
        return KINDS[self.kind].level

    def __str__(self) -> str:
        return f'{self.where}: {self.detail}' if self.detail else self.where
