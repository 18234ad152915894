"""What a SavedModel of somebody else may do when it runs: compute, and nothing with files, networks or Python.

Loading a SavedModel runs its graph, and TensorFlow has operations that write files. They are looked for in the file
before it is loaded. Imports nothing of dlkit, because the checking process loads it by its path.
"""

from pathlib import Path

# by the beginning of their names, which "Experimental" may precede
REACHING_OUT = (
    *("PyFunc", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles", "WholeFile", "LoadDataset", "LoadLibrary"),
    *("SaveDataset", "TFRecord", "TextLine", "FixedLengthRecord", "InitializeTableFromTextFile", "Rpc", "DataService"),
    *("Dump", "DebugIdentity", "DebugNumeric", "ImmutableConst", "IO>", "Snapshot", "LMDB", "SqlDataset", "CSVDataset"),
    *("WriteSummary", "WriteAudio", "WriteImage", "WriteGraph", "WriteScalar", "WriteHistogram", "CreateSummary"),
    *("WriteRawProto", "DatasetToTFRecord", "CacheDataset", "ListSnapshot", "DistributedSave", "RegisterDataset"),
    *("GenerateVocabRemapping", "LoadAndRemapMatrix", "TryRpc"),
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
        answering = _behind_signatures(graph)
        for node in graph.graph_def.node:
            found |= _of(node, saving, allowed=node.name not in answering)
        for function in functions:
            for node in function.node_def:
                found |= _of(node, saving, allowed=function.signature.name in saving)
    return sorted(found)


def _of(node, saving, allowed):
    """What is strange about a node; `allowed` where checkpoints may be saved and restored."""
    strange = node.op.removeprefix("Experimental").startswith(REACHING_OUT)
    strange |= node.op == "PrintV2" and node.attr["output_stream"].s.startswith(b"file:")
    strange |= node.op.startswith(CHECKPOINT) and not allowed
    calls = {each.name for value in node.attr.values() for each in (value.func, *value.list.func)}
    called = set() if allowed else calls & saving
    return ({node.op} if strange else set()) | {f"a call of {name}" for name in called}


def _behind_signatures(graph):
    """The names of the nodes outside of functions that an answer needs."""
    inputs = {node.name: [name.split(":")[0].lstrip("^") for name in node.input] for node in graph.graph_def.node}
    left = [value.name.split(":")[0] for each in graph.signature_def.values() for value in each.outputs.values()]
    found = set()
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += inputs.get(name, [])
    return found
