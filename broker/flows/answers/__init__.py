"""What the stored records say: expressions on records, and the questions of `tapmesh flows`. Needs the extra `flows`."""
