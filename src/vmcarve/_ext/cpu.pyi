PATHS: dict[str, int]
