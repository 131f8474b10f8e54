"""Reading transcripts, finding their responses, turning them into token ids."""
