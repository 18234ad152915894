"""What a SavedModel of somebody else may do when it runs: compute, and nothing with files, networks or Python.

Loading a SavedModel runs its graph, and TensorFlow has operations that write files. They are looked for in the file
before it is loaded. Imports nothing of dlkit, because the checking process loads it by its path.
"""

from pathlib import Path

# by the beginning of their names
REACHING_OUT = (
    *("PyFunc", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles", "WholeFile", "LoadDataset", "LoadLibrary"),
    *("SaveDataset", "TFRecord", "TextLine", "FixedLengthRecord", "InitializeTableFromTextFile", "Rpc", "DataService"),
    *("Dump", "DebugIdentity", "DebugNumeric", "ImmutableConst", "IO>", "SnapshotDataset", "LMDB", "SqlDataset"),
    *("WriteSummary", "WriteAudio", "WriteImage", "WriteGraph", "WriteScalar", "WriteHistogram", "CreateSummaryFile"),
)
CHECKPOINT = ("Save", "Restore", "MergeV2Checkpoints")  # every SavedModel has a function each to save and to restore
_LARGEST = 2**31  # bytes that a protocol buffer can have


def strange_operations(folder):
    """Returns the operations of a SavedModel that reach out of the process, by name; empty for a plain network."""
    from tensorflow.core.protobuf import saved_model_pb2

    path = Path(folder) / "saved_model.pb"
    if path.stat().st_size >= _LARGEST:
        return [f"a file of {path.stat().st_size:,} bytes"]
    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString(path.read_bytes())
    found = set()
    for graph in proto.meta_graphs:
        functions = graph.graph_def.library.function
        saving = {f.signature.name for f in functions if "traced_save" in f.signature.name}
        saving |= {f.signature.name for f in functions if "traced_restore" in f.signature.name}
        for node in graph.graph_def.node:
            found |= _of(node, allowed=True)
        for function in functions:
            inside = function.signature.name in saving
            for node in function.node_def:
                found |= _of(node, allowed=inside)
                called = {value.func.name for value in node.attr.values()} & saving
                found |= {f"a call of {name}" for name in called if not inside}
    return sorted(found)


def _of(node, allowed):
    strange = node.op.startswith(REACHING_OUT) or (node.op.startswith(CHECKPOINT) and not allowed)
    return {node.op} if strange else set()
