"""What every adapter uses: types, checks, files, messages, memory."""
