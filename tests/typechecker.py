"""The checker of annotations that the tests switch on: beartype, where a whole number also is a float."""

from beartype import BeartypeConf, beartype

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))
