"""Operations on arrays that several folders share; internal, so nothing here is part of the public API."""

__all__: list[str] = []
