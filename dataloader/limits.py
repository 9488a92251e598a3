"""What a file that is read may ask for: one table, each bound far above honest
files and below what hurts.

A bound stands here where something small could ask for endless time or memory. What costs in
proportion to the file has none: a checkpoint of 10 GB may take its minute. Rows of LMDBs have
further bounds of their own where they are decoded.
"""

# Text of settings. PyYAML, in Python, takes 4 to 10 µs and 150 bytes of memory for each byte: 1 s
# at this size. The longest honest file lists sources, 50 bytes each.
SETTINGS_BYTES = 128 * 2**10
SETTINGS_DEPTH = 16  # `sources` needs three; PyYAML and the parser of options recurse
# A model.json of 89 elements and 20 heads has 60 kB.
MODEL_JSON_BYTES = 2**20
# JSON beside data (manifest, report, index header): a shard takes 200 bytes, and 10⁵ shards
# are an absurd data set.
JSON_BYTES = 64 * 2**20
JSON_DEPTH = 64  # ours has five levels, embedding_specs one more; whoever walks it recurses
# seeds have 64, states of random generators 128; Python prints no more than 4300 digits
INTEGER_BITS = 128

# One line of a metrics.jsonl: a record has some thousands, with thousands of sources a megabyte.
RECORD_BYTES = 4 * 2**20

# Extended XYZ. The longest honest comment holds a Hessian: 200 atoms make 360,000 numbers of 20
# letters. Split into words it takes 60 times its size: half a GB, 1 s.
XYZ_COMMENT_BYTES = 8 * 2**20
XYZ_COMMENT_KEYS = 10_000  # each costs 1 kB and 5 µs; people write ten
# per atom, all entries of Properties together; descriptors have up to a few thousand
XYZ_COLUMNS = 10_000
XYZ_LINE_BYTES = 64 * XYZ_COLUMNS  # of an atom
XYZ_ATOMS = 10_000_000  # per frame; MACE on the largest GPU takes some 10⁵

# Weights files. A network of mace makes 10⁴ opcodes, 70 records and 45 names; a
# checkpoint 6000, 160 and 8.
PICKLE_NAMES = 512  # torch looks a name up in a list each time it is used
PICKLE_DEPTH = 200  # containers and objects in one another; mace's modules in modules make 30
PICKLE_LONG_BYTES = 32  # of a whole number; states of random generators take 17
# Values, where each shared one counts at every place, since there it is hashed and compared again
# (1 µs each): one for each byte of the pickle, and these to spare. Copies that unpickling makes of
# shared parts: four for each byte.
PICKLE_WORK_PER_BYTE = 4
PICKLE_WORK = 2**20
# times the size of the file that all tensors may have together; weights lie there at most twice
TENSOR_SHARING = 8
ZIP_RECORDS = 2**17  # one a tensor; a directory of so many is read in 1 s

# Keys of an LMDB: an entry takes 8 bytes and its key and value, and a tree with a loop
# lists keys without end.
LMDB_ENTRY_BYTES = 8
# A row of JSON may unfold to so many times its compressed size, and some to spare; forces that
# are all zero reach 200.
ROW_UNFOLDING = 400
ROW_SPARE_BYTES = 4 * 2**20
ARRAY_AXES = 4  # in a file of arrays; ours have two

# HDF5: a data set may be compressed to nothing, and its size is what its header says.
# The forces of 10⁷ atoms.
HDF5_VALUES = 3 * XYZ_ATOMS

# Files of ASE. A folder or a pattern names 10⁵ runs; a .traj or .db states sizes that are compared
# with its own. of an output that is read as text; those of long molecular dynamics have 1 GB
ASE_TEXT_BYTES = 4 * 2**30
ASE_HEADER_BYTES = 16 * 2**20  # at the beginning of an output, with the number of atoms
ASE_STRUCTURE_BYTES = 64 * 2**20  # of a file with one structure: cif, POSCAR
ASE_JSON_BYTES = 64 * 2**20  # of an item of a .traj, of an entry of a .db
