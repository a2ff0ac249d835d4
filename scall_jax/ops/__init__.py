"""Operations on arrays that several parts of the package share."""
