"""Running what was compiled: `CompiledModule`, and the op that carries an engine inside an exported program."""
